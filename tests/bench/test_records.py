"""Records of runs: what is written is read back, and what cannot be read is named."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtobal.bench.records import (
    EpochRecord,
    Failure,
    MetricInfo,
    RunRecord,
    load_experiment,
    load_run,
    run_folder,
    save_failure,
    save_run,
    write_json_atomic,
    write_text_atomic,
)
from mtobal.errors import UsageError

INFOS = (MetricInfo("left/accuracy", "left", True), MetricInfo("right/error", "right", False))


def record(row: str = "ew", seed: int = 0, **changes: Any) -> RunRecord:
    single = row.startswith("single")
    infos = tuple(info for info in INFOS if not single or info.task in row)
    tasks = tuple(info.task for info in infos)
    epochs = tuple(
        EpochRecord(
            epoch=epoch,
            train_losses=dict.fromkeys(tasks, 1.0 / (epoch + 1)),
            validation_losses=dict.fromkeys(tasks, 1.5 / (epoch + 1)),
            validation_metrics={info.name: 0.1 * epoch for info in infos},
            weights=dict.fromkeys(tasks, 1.0),
            seconds=0.25,
            conflict={"all": 0.5},
        )
        for epoch in range(3)
    )
    run = RunRecord(
        row=row,
        kind="single" if single else "multi",
        strategy="ew" if single else row,
        seed=seed,
        tasks=tasks,
        metric_infos=infos,
        test_metrics={info.name: 0.9 for info in infos},
        selected_epoch=2,
        selection="The epoch with the lowest mean validation loss.",
        epochs=epochs,
        seconds_per_step=0.01,
        steps=30,
        parameters=1234,
        versions={"torch": "2.13.0"},
        hardware={"cpu": "2 cores"},
        peak_memory_bytes=2**33,
        config={"optimizer": {"name": "adam", "lr": 1e-3}, "betas": [0.9, 0.999], "clip": None},
    )
    return dataclasses.replace(run, **changes)


def write_experiment(folder: Path, *runs: RunRecord, recipe: str = "") -> Path:
    for run in runs:
        save_run(run_folder(folder, run.row, run.seed), run)
    (folder / "recipe.yaml").write_text(recipe or "title: Two digits\nstrategies: [ew, uw]\n")
    return folder


def test_a_run_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    save_run(tmp_path / "run", record())
    assert load_run(tmp_path / "run") == record()


@given(st.floats(), st.text(st.characters(exclude_categories=["Cs"])), st.integers(0, 2**63))
def test_any_number_and_any_text_survive(
    tmp_path_factory: pytest.TempPathFactory, value: float, text: str, seed: int
) -> None:
    folder = tmp_path_factory.mktemp("run")
    save_run(folder, record(test_metrics={text: value}, selection=text, seed=seed, steps=seed))
    run = load_run(folder)
    assert run.selection == text
    assert run.seed == run.steps == seed
    if math.isfinite(value):
        assert run.test_metrics == {text: value}
    else:
        assert math.isnan(run.test_metrics[text])


def test_what_is_not_finite_is_null_and_the_json_is_standard(tmp_path: Path) -> None:
    diverged = dataclasses.replace(record().epochs[0], train_losses={"left": math.inf, "right": math.nan})
    save_run(tmp_path, record(test_metrics={"left/accuracy": -math.inf, "right/error": 0.5}, epochs=(diverged,)))

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    data = json.loads((tmp_path / "result.json").read_text(), parse_constant=refuse)
    assert data["schema"] == 2
    assert data["test_metrics"] == {"left/accuracy": None, "right/error": 0.5}
    assert math.isnan(load_run(tmp_path).epochs[0].train_losses["left"])


def test_the_history_holds_one_line_an_epoch(tmp_path: Path) -> None:
    save_run(tmp_path, record())
    with (tmp_path / "history.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["epoch"] for line in lines] == ["0", "1", "2"]
    assert [float(line["train_loss/left"]) for line in lines] == [1.0, 0.5, 1 / 3]
    assert float(lines[2]["validation/right/error"]) == 0.2
    assert float(lines[0]["weight/right"]) == 1.0


def test_a_file_cut_short_anywhere_is_named(tmp_path: Path) -> None:
    save_run(tmp_path, record())
    path = tmp_path / "result.json"
    whole = path.read_text()
    for length in range(0, len(whole.rstrip()), 37):
        path.write_text(whole[:length])
        with pytest.raises(UsageError, match="expected JSON, but it cannot be read") as caught:
            load_run(tmp_path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": "0"}, r"seed: expected an integer, got \"0\""),
        ({"seed": True}, "seed: expected an integer, got true"),
        ({"steps": 1.5}, "steps: expected an integer, got 1.5"),
        ({"seconds_per_step": "fast"}, r"seconds_per_step: expected a number, got \"fast\""),
        ({"row": None}, "row: expected a text, got null"),
        ({"kind": "both"}, r"kind: expected one of 'multi', 'single', got \"both\""),
        ({"tasks": "left"}, r"tasks: expected a list, got \"left\""),
        ({"tasks": ["left", 3]}, r"tasks\[1\]: expected a text, got 3"),
        ({"test_metrics": {"left/accuracy": "high"}}, r"test_metrics\['left/accuracy'\]: expected a number"),
        (
            {"metric_infos": [{"name": "a", "task": "b"}]},
            r"metric_infos\[0\]: expected the fields higher_is_better",
        ),
        ({"metric_infos": [[]]}, r"metric_infos\[0\]: expected an object, got \[\]"),
        ({"colour": "red"}, "unknown fields colour"),
        ({"peak_memory_bytes": 1.5}, "peak_memory_bytes: expected an integer, got 1.5"),
        ({"schema": 1}, "expected result schema 2, got 1"),
        ({"schema": None}, "expected result schema 2, got null"),
    ],
)
def test_a_wrong_value_is_named_with_its_place_and_file(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    save_run(tmp_path, record())
    path = tmp_path / "result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UsageError, match=message) as caught:
        load_run(tmp_path)
    assert str(caught.value).startswith(f"{path}: ")


def test_a_missing_field_a_missing_file_and_another_kind_of_json_are_named(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    with pytest.raises(UsageError, match=r"result\.json: .*the file is missing"):
        load_run(tmp_path)
    path.write_text('{"schema": 2}')
    with pytest.raises(
        UsageError, match=r"result\.json: expected the fields .*config, epochs, .*, which are missing"
    ):
        load_run(tmp_path)
    path.write_text("[1]")
    with pytest.raises(UsageError, match=r"result\.json: expected a JSON object, got \[1\]"):
        load_run(tmp_path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match=r"result\.json: expected JSON, but it cannot be read"):
        load_run(tmp_path)


def test_a_failure_while_writing_leaves_the_old_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "report.md"
    write_text_atomic(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_text_atomic(path, "new, up to a character that has no encoding: \ud800")
    with pytest.raises(TypeError):
        write_json_atomic(path, {"value": object()})
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    write_text_atomic(path, "new\r\n")
    assert path.read_bytes() == b"new\r\n"


def test_an_experiment_is_in_the_order_of_its_recipe(tmp_path: Path) -> None:
    rows = ["uw", "zeta", "ew", "alpha", "single(right)", "single(left)"]
    write_experiment(tmp_path, *(record(row, seed) for row in rows for seed in (10, 2)))
    run_folder(tmp_path, "uw", 11).mkdir()
    run_folder(tmp_path, "gradnorm", 0).mkdir(parents=True)
    experiment = load_experiment(tmp_path)
    assert [(run.row, run.seed) for run in experiment.runs] == [
        (row, seed) for row in ("single(left)", "single(right)", "ew", "uw", "alpha", "zeta") for seed in (2, 10)
    ]
    assert experiment.unfinished == ("gradnorm/seed-0", "uw/seed-11")
    assert experiment.title == "Two digits"
    assert experiment.recipe["strategies"] == ["ew", "uw"]


def test_failures_are_read_beside_the_runs(tmp_path: Path) -> None:
    failure = Failure("uw", 1, "ValueError: no", "Traceback\n...")
    (tmp_path / "uw" / "seed-1").mkdir(parents=True)
    save_failure(tmp_path / "uw" / "seed-1", failure)
    with pytest.raises(UsageError, match=r"found only unfinished ones \(uw, seed 1: ValueError: no\)"):
        load_experiment(tmp_path)
    write_experiment(tmp_path, record())
    experiment = load_experiment(tmp_path)
    assert (experiment.failures, experiment.unfinished) == ((failure,), ())


def test_without_a_recipe_the_folder_names_the_experiment(tmp_path: Path) -> None:
    save_run(run_folder(tmp_path / "digits", "ew", 0), record())
    assert load_experiment(tmp_path / "digits").title == "digits"


def test_a_row_of_any_name_has_a_folder_of_its_own_beneath_the_experiment(tmp_path: Path) -> None:
    rows = [
        f"static(weights={[1.0] * 300})",
        f"static(weights={[1.0] * 301})",
        "uw+cagrad(c=0.4)",
        "a/b",
        "a%2Fb",
        "../up",
        "*",
        "<b>",
        "é",
    ]
    write_experiment(tmp_path, *(record(row) for row in rows))
    assert {run.row for run in load_experiment(tmp_path).runs} == set(rows)
    assert {run_folder(tmp_path, row, 0).parent.parent for row in rows} == {tmp_path}


def test_a_folder_that_is_no_experiment_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nowhere: expected the folder of an experiment, but there is none"):
        load_experiment(tmp_path / "nowhere")
    with pytest.raises(UsageError, match=r"expected finished runs .*, found none"):
        load_experiment(tmp_path)
    run_folder(tmp_path, "ew", 0).mkdir(parents=True)
    with pytest.raises(UsageError, match=r"found only unfinished ones \(ew/seed-0\)"):
        load_experiment(tmp_path)


@pytest.mark.parametrize(
    ("recipe", "message"),
    [("a: [1", "expected YAML, but it cannot be read"), ("- 1", "expected a YAML mapping, got")],
)
def test_a_recipe_that_cannot_be_read_is_named(tmp_path: Path, recipe: str, message: str) -> None:
    write_experiment(tmp_path, record(), recipe=recipe)
    with pytest.raises(UsageError, match=message) as caught:
        load_experiment(tmp_path)
    assert str(tmp_path / "recipe.yaml") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_runs_that_cannot_stand_in_one_table_are_refused(tmp_path: Path) -> None:
    write_experiment(tmp_path, record(), record("uw", tasks=("left",)))
    with pytest.raises(UsageError, match="run 'uw' with seed 0 has other tasks or metrics than run 'ew'"):
        load_experiment(tmp_path)
    save_run(
        run_folder(tmp_path, "uw", 0), record("uw", metric_infos=(MetricInfo("left/accuracy", "left", False),))
    )
    with pytest.raises(UsageError, match=r"run 'uw' with seed 0 should report \['left/accuracy'\] but has"):
        load_experiment(tmp_path)
    turned = (INFOS[0], MetricInfo("right/error", "right", True))
    save_run(run_folder(tmp_path, "uw", 0), record("uw", metric_infos=turned))
    with pytest.raises(UsageError, match="describes the metric 'right/error' otherwise"):
        load_experiment(tmp_path)
    save_run(run_folder(tmp_path, "uw", 0), record("ew"))
    with pytest.raises(UsageError, match="run 'ew' with seed 0 is there twice"):
        load_experiment(tmp_path)
    save_run(run_folder(tmp_path, "uw", 0), record("uw", kind="single"))
    with pytest.raises(UsageError, match="should be a baseline of one task"):
        load_experiment(tmp_path)
