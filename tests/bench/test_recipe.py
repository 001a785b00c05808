"""Recipes: those of the package are sound, and what is wrong with another is named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from experiments import TINY, write_recipe
from mtobal.bench.plan import plan_runs, static_weights
from mtobal.bench.recipe import load_recipe
from mtobal.bench.recipes import recipe_names
from mtobal.errors import UsageError


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_of_the_package_is_sound(name: str) -> None:
    assert load_recipe(name).title


def test_what_a_recipe_writes_reads_back_as_itself(tmp_path: Path) -> None:
    recipe = load_recipe(write_recipe(tmp_path / "tiny.yaml"))
    (tmp_path / "again.yaml").write_text(recipe.as_yaml(), encoding="utf-8")
    assert load_recipe(tmp_path / "again.yaml") == recipe


def test_defaults_are_filled_in(tmp_path: Path) -> None:
    mapping = load_recipe(write_recipe(tmp_path / "tiny.yaml")).as_mapping()
    assert mapping["data"]["seed"] == 0
    assert mapping["threads"] == 1


def test_one_strategy_in_two_spellings_is_one_row(tmp_path: Path) -> None:
    path = write_recipe(tmp_path / "tiny.yaml", strategies=["uw + pcgrad", "ew", "uw+pcgrad"])
    assert load_recipe(path).strategies == ("uw+pcgrad", "ew")


def test_numbers_that_yaml_takes_for_text_are_numbers(tmp_path: Path) -> None:
    path = tmp_path / "tiny.yaml"
    text = write_recipe(path).read_text(encoding="utf-8").replace("learning_rate: 0.01", "learning_rate: 1e-2")
    path.write_text(text, encoding="utf-8")
    assert load_recipe(path).learning_rate == 0.01


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epoch": 3}, "recipe .* has no option 'epoch': did you mean 'epochs'"),
        ({"epochs": "many"}, "epochs should be a whole number, not 'many'"),
        ({"epochs": 1.5}, "epochs should be a whole number, not 1.5"),
        ({"epochs": True}, "epochs should be a whole number, not True"),
        ({"epochs": 0}, "epochs should be greater than zero"),
        ({"evaluation_batch_size": 0}, "evaluation_batch_size should be greater than zero"),
        ({"decay_epochs": -1}, "decay_epochs should be zero or more, not -1"),
        ({"learning_rate": "fast"}, "learning_rate should be a number, not 'fast'"),
        ({"learning_rate": float("nan")}, "learning_rate should be greater than zero, not nan"),
        ({"strategies": "ew"}, "strategies should be a list, each item a text, not 'ew'"),
        ({"strategies": []}, "strategies should name at least one"),
        ({"strategies": ["pcgard"]}, "unknown strategy 'pcgard': did you mean 'pcgrad'"),
        ({"accelerator": "gpu"}, "unknown accelerator 'gpu'"),
        ({"data": "digits"}, "data should be a mapping, not 'digits'"),
        ({"data": {"train_pairs": 5}}, "the data set needs a name"),
        ({"data": {"name": "digit"}}, "unknown data set 'digit': did you mean 'digits'"),
        ({"data": {"name": "digits", "pairs": 5}}, "data set 'digits' has no option 'pairs'"),
        ({"model": {"name": "hard_shering"}}, "unknown model 'hard_shering': did you mean 'hard_sharing'"),
        ({"model": {"name": "hard_sharing", "features": "8"}}, "features should be a whole number, not '8'"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = write_recipe(tmp_path / "tiny.yaml", **changes)
    with pytest.raises(UsageError, match=message) as caught:
        load_recipe(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("missing", ["title", "data", "model", "batch_size", "epochs", "strategies", "seeds"])
def test_a_missing_key_is_named(tmp_path: Path, missing: str) -> None:
    path = tmp_path / "tiny.yaml"
    write_recipe(path)
    lines = path.read_text(encoding="utf-8").splitlines()
    start = next(index for index, line in enumerate(lines) if line.startswith(f"{missing}:"))
    end = next((i for i in range(start + 1, len(lines)) if lines[i][0] not in " -"), len(lines))
    path.write_text("\n".join(lines[:start] + lines[end:]), encoding="utf-8")
    with pytest.raises(UsageError, match=f"{missing} is missing"):
        load_recipe(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [("a: [1", "this is no YAML"), ("", "expected a mapping"), ("- ew", "expected a mapping")],
)
def test_a_file_that_is_no_recipe_is_named(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(UsageError, match=message) as caught:
        load_recipe(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_recipe_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown recipe 'digit': did you mean 'digits'"):
        load_recipe("digit")
    with pytest.raises(UsageError, match=r"nowhere\.yaml: expected a recipe"):
        load_recipe("nowhere.yaml")
    (tmp_path / "folder.yaml").mkdir()
    with pytest.raises(
        UsageError, match=r"folder\.yaml: expected a recipe, but it cannot be read \(Is a directory\)"
    ):
        load_recipe(tmp_path / "folder.yaml")


def test_the_plan_has_every_row_under_every_seed(tmp_path: Path) -> None:
    recipe = replace(load_recipe(write_recipe(tmp_path / "tiny.yaml", seeds=3)), tasks=("left", "right"))
    runs = plan_runs(recipe)
    assert len({(run.row, run.seed) for run in runs}) == len(runs) == (2 + len(TINY["strategies"])) * 3
    assert [run.seed for run in runs] == sorted(run.seed for run in runs)
    for run in runs:
        assert (run.kind == "single") == (run.strategy == "") == (len(run.tasks) == 1)
        assert run.row == (run.strategy or f"single({run.tasks[0]})")


@pytest.mark.parametrize("tasks", [2, 3, 40])
def test_static_weights_sum_to_the_number_of_tasks_and_a_longer_sweep_keeps_the_shorter(tasks: int) -> None:
    long = static_weights(50, tasks)
    assert long[:8] == static_weights(7, tasks)
    assert len(set(long)) == 51
    rows = [yaml.safe_load(row.removeprefix("static(weights=").removesuffix(")")) for row in long[1:]]
    for weights in rows:
        assert len(weights) == tasks
        assert sum(weights) == pytest.approx(tasks)
        assert min(weights) >= 0
        assert all(round(weight, 3) == weight for weight in weights)
    # Uniform on the simplex, each weight has mean one and variance (K - 1) / (K + 1).
    table = torch.tensor(rows)
    assert table.mean() == pytest.approx(1)
    assert table.var() == pytest.approx((tasks - 1) / (tasks + 1), rel=0.5)
    assert replace(load_recipe("digits"), strategies=tuple(long)).strategies == tuple(long)
