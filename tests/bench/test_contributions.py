"""Contributions of tasks to each other: subsets of labels, the N + 1 trainings, and weights that `bench` takes."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import yaml
from rich.console import Console
from torch import Tensor

from command_line import assert_refused
from experiments import write_recipe
from mtobal.bench.contributions import Measurement, measure_contributions
from mtobal.bench.recipe import load_recipe
from mtobal.bench.records import MetricInfo, load_experiment, load_run, run_folder
from mtobal.bench.subsets import LabelSubsets
from mtobal.cli import main, split_specs
from mtobal.data import InMemoryDataset
from mtobal.data.multitask import BatchPerTask, OneTaskBatches
from mtobal.errors import UsageError
from mtobal.report.contributions import build_contributions, console_tables
from mtobal.tasks import Classification, Depth, Normals, Regression, Task
from report.experiments import make_run

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SIZE = 40
# Digits beside each other and room for both: every task learns much from its labels, whatever the machine rounds.
CHANGES = {
    "epochs": 4,
    "learning_rate": 0.015,
    "model": {"name": "hard_sharing", "channels": [8], "features": 32},
    "data": {"name": "digits", "train_pairs": 600, "validation_pairs": 200, "test_pairs": 60, "offset": 8},
}
SHARES = ["--mini", "1/10", "--large", "1"]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recipe(tmp_path_factory.mktemp("recipes") / "tiny.yaml", **CHANGES)


@pytest.fixture(scope="module")
def folder(recipe: Path) -> Path:
    # Without --out, the folder is runs/<recipe>-contributions where the command is called.
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(recipe.parent)
        assert main(["contributions", str(recipe), *SHARES]) == 0
    return recipe.parent / "runs" / "tiny-contributions"


def measurement(mini: Sequence[Sequence[float]], large: Sequence[Sequence[Sequence[float]]]) -> Measurement:
    """By hand; the score of the task `b` is an error."""
    metrics = (MetricInfo("a/accuracy", "a", True), MetricInfo("b/error", "b", False))
    return Measurement(
        recipe=dataclasses.replace(load_recipe("digits"), title="<b>By hand</b>"),
        tasks=("a", "b"),
        metrics=metrics,
        shares=(0.25, 1.0),
        samples=((1000, 4000), (1000, 4000)),
        runs=(),
        mini=torch.tensor(mini, dtype=torch.float64),
        large=torch.tensor(large, dtype=torch.float64),
        on_test=False,
    )


def test_contributions_and_difficulties_by_hand() -> None:
    # a: 0.4 -> 0.8 with its own labels, 0.5 with those of b; b: 2.0 -> 1.0 with its own, 1.5 with those of a.
    found = measurement([[0.4, 2.0]], [[[0.8, 1.5], [0.5, 1.0]]]).estimate
    torch.testing.assert_close(found.matrix, torch.tensor([[1.0, 0.5], [0.25, 1.0]], dtype=torch.float64))
    torch.testing.assert_close(found.difficulty, torch.tensor([0.5, 0.5], dtype=torch.float64))
    assert found.outward.tolist() == pytest.approx([0.5, 0.25])
    assert found.inward.tolist() == pytest.approx([0.25, 0.5])
    for weights in dataclasses.astuple(found.weights):
        assert weights.sum() == pytest.approx(2)
    assert found.weights.final[0] > found.weights.final[1]  # equally difficult, but a gives more and receives less


def test_seeds_are_averaged_before_they_are_divided() -> None:
    seeds = measurement([[0.4, 2.0], [0.2, 3.0]], [[[0.8, 1.5], [0.5, 1.0]], [[0.6, 3.0], [0.1, 3.5]]])
    torch.testing.assert_close(
        seeds.estimate.matrix, torch.tensor([[1.0, 1.0], [0.0, 1.0]], dtype=torch.float64), atol=1e-12, rtol=0
    )
    spread = seeds.spread(lambda estimate: estimate.matrix)
    assert spread is not None
    # Under the second seed, b became worse with its own labels: what a did for it cannot be told.
    assert spread[1, 0] == pytest.approx(0.5 / 2**0.5)
    assert spread[0, 1].isnan()


@pytest.mark.parametrize(
    ("mini", "own", "message"),
    [
        (
            (0.0, 2.0),
            (0.0, 1.0),
            "task 'a': its own labels did not improve its score a/accuracy (mini 0, large 0)",
        ),
        ((0.4, 2.0), (0.8, 2.5), "task 'b': its own labels did not improve its score b/error (mini 2, large 2.5)"),
        ((-0.4, 2.0), (0.8, 1.0), "task 'a': the score a/accuracy is negative"),
    ],
)
def test_scores_without_an_answer_are_refused(
    mini: tuple[float, float], own: tuple[float, float], message: str
) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        measurement([mini], [[[own[0], mini[1]], [mini[0], own[1]]]]).check()


def constant(shape: tuple[int, ...], value: float) -> Tensor:
    return torch.full((SIZE, *shape), value)


EVERY_TASK: dict[Task, Tensor] = {
    Classification("kind", num_classes=3): torch.arange(SIZE) % 3,
    Regression("size"): constant((1,), 0.5),
    Depth("depth"): constant((1, 2, 2), 0.5),
    Normals("normals"): constant((3, 2, 2), 0.5),
}


@pytest.mark.parametrize("form", ["mixed", "one_task", "per_task"])
def test_every_task_keeps_its_share_of_labels(form: str) -> None:
    tasks = list(EVERY_TASK)
    inputs = torch.arange(SIZE, dtype=torch.float32)
    groups = torch.arange(SIZE) % len(tasks)
    targets = {task.name: target.clone() for task, target in EVERY_TASK.items()}
    dataset: InMemoryDataset | OneTaskBatches | BatchPerTask = InMemoryDataset(inputs, targets)
    if form == "one_task":
        for place, task in enumerate(tasks):  # a sample has a label of its own task alone
            mark = {"kind": -1, "size": torch.nan}.get(task.name, 0)
            targets[task.name][groups != place] = mark
        dataset = OneTaskBatches(InMemoryDataset(inputs, targets), groups)
    elif form == "per_task":
        dataset = BatchPerTask({name: InMemoryDataset(inputs, {name: target}) for name, target in targets.items()})
    available = SIZE // len(tasks) if form == "one_task" else SIZE

    subsets = LabelSubsets(dataset, tasks)
    kept: dict[float, dict[str, set[float]]] = {}
    for share in (0.2, 0.5):
        subset = subsets.draw({task.name: share if task.name == "kind" else 0.3 for task in tasks}, seed=1)
        kept[share] = {task.name: set() for task in tasks}
        for indices in subset.batches(8):
            values, labels = subset[indices]
            found = []
            for task in tasks:
                if task.name not in labels:
                    continue
                mask = task.labelled(labels[task.name]).reshape(len(labels[task.name]), -1).any(1)
                own = values[task.name] if isinstance(values, dict) else values
                kept[share][task.name] |= set(own[mask].tolist())
                found.append(mask)
            if form != "per_task":
                assert torch.stack(found).any(0).all()  # no sample without a label
            if form == "one_task":
                assert sum(bool(mask.any()) for mask in found) == 1
        assert len(kept[share]["kind"]) == round(share * available) == subsets.count("kind", share)
        assert len(kept[share]["size"]) == round(0.3 * available)
    # The mini subset is part of the large one, and the other tasks do not notice which it is.
    assert kept[0.2]["kind"] < kept[0.5]["kind"]
    assert kept[0.2]["size"] == kept[0.5]["size"]
    assert kept[0.2]["size"] != kept[0.2]["depth"]


def test_an_unlabelled_task_and_one_without_a_mark_are_named() -> None:
    task = Classification("kind", num_classes=3)
    empty = InMemoryDataset(torch.zeros(4, 1), {"kind": torch.full((4,), -1)})
    with pytest.raises(UsageError, match="task 'kind' has no label in the training split"):
        LabelSubsets(empty, [task])

    class Everything(Regression):
        def labelled(self, target: Tensor) -> Tensor:
            return torch.ones_like(target, dtype=torch.bool)

    dataset = InMemoryDataset(torch.zeros(4, 1), {"all": torch.zeros(4, 1)})
    subset = LabelSubsets(dataset, [Everything("all")]).draw({"all": 0.5}, seed=0)
    with pytest.raises(UsageError, match="task 'all' takes none of 0, -1 and NaN for a missing label"):
        subset[0]


def test_the_command_trains_measures_and_writes(recipe: Path, folder: Path) -> None:
    document = json.loads((folder / "contributions.json").read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert {path.name for path in folder.iterdir() if path.is_dir()} == {"mini", "large(left)", "large(right)"}
    assert document["samples"] == {task: {"mini": 60, "large": 600} for task in ("left", "right")}
    runs = {row: load_run(run_folder(folder, row, 0)) for row in ("mini", "large(left)", "large(right)")}
    # 20 samples a step; two draws of 60 overlap by some, a large subset is everything.
    assert 4 * 3 < runs["mini"].steps <= 4 * 6
    assert runs["large(left)"].steps == 4 * 30
    for row, run in runs.items():
        scores = run.epochs[run.selected_epoch].validation_metrics
        told = document["scores"]["mini"] if row == "mini" else document["scores"]["large"][row[6:-1]]
        assert told == {task: scores[f"{task}/accuracy"] for task in ("left", "right")}
    lines = list(csv.DictReader(io.StringIO((folder / "contributions.csv").read_text(encoding="utf-8"))))
    for line in lines:
        if line["quantity"] == "contribution" and line["seed"] == "":
            assert float(line["value"]) == document["contributions"][line["from"]][line["to"]]
    assert {line["seed"] for line in lines} == {"", "0"}
    assert len(lines) == 2 * (2 + 4 + 4 + 7 * 2)
    page = (folder / "contributions.html").read_text(encoding="utf-8")
    assert "<script src" not in page
    assert "large(left)" in page


def test_the_same_command_again_trains_nothing_and_another_is_refused(
    recipe: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = {path: path.stat().st_mtime_ns for path in folder.glob("*/seed-0/result.json")}
    page = (folder / "contributions.html").read_bytes()
    again = ["contributions", str(recipe), "--out", str(folder)]
    assert main([*again, *SHARES]) == 0
    output = capsys.readouterr().out
    assert output.count("finished before") == 3
    assert "Contribution of row to column" in output
    assert results == {path: path.stat().st_mtime_ns for path in folder.glob("*/seed-0/result.json")}
    assert page == (folder / "contributions.html").read_bytes()
    for change, key in ((["--epochs", "9", *SHARES], "epochs"), (["--mini", "1/5", "--large", "1"], "mini")):
        assert main([*again, *change]) == 2
        assert f"belongs to a measurement with another {key}; choose another --out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("thesis.tex", "precious", "expected a measurement or an empty folder"),
        ("measurement.yaml", "mini: [", "measurement.yaml: this is no YAML"),
        ("measurement.yaml", "precious", "measurement.yaml: expected a mapping, not 'precious'"),
    ],
)
def test_a_folder_of_something_else_is_refused(
    name: str, text: str, message: str, recipe: Path, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=message):
        measure_contributions(load_recipe(recipe), tmp_path, Console(file=io.StringIO()))
    assert [(path.name, path.read_text(encoding="utf-8")) for path in tmp_path.iterdir()] == [(name, text)]


def test_bench_trains_with_the_weights(recipe: Path, folder: Path, tmp_path: Path) -> None:
    document = json.loads((folder / "contributions.json").read_text(encoding="utf-8"))
    specs = yaml.safe_load((folder / "weights.yaml").read_text(encoding="utf-8"))["strategies"]
    assert specs == list(document["specs"].values()) == split_specs(",".join(specs))
    out = tmp_path / "out"
    assert main(["bench", str(recipe), "--epochs", "1", "--strategies", ",".join(specs), "--out", str(out)]) == 0
    runs = [run for run in load_experiment(out).runs if run.kind == "multi"]
    assert [run.row.partition("(")[0] for run in runs] == ["static", "visatb"]
    for run in runs:
        assert run.epochs[0].weights == pytest.approx(document["weights"]["final"], abs=1e-4)


def test_names_are_shown_as_they_are(tmp_path: Path) -> None:
    hostile = "<img src=x>[b]"
    found = dataclasses.replace(
        measurement([[0.4, 2.0]], [[[0.8, 1.5], [0.5, 1.0]]]),
        tasks=(hostile, "b"),
        runs=(make_run("mini", 0, (hostile, "b"), (0.5, 0.5), 0.01),),
    )
    page = build_contributions(tmp_path, found).read_text(encoding="utf-8")
    assert "&lt;img src=x&gt;[b]" in page
    assert hostile not in page
    output = io.StringIO()
    Console(file=output, width=80).print(*console_tables(found))
    assert hostile in output.getvalue()
    assert "0.250" in output.getvalue()


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")
def test_the_charts_are_drawn_in_a_browser(folder: Path, tmp_path: Path) -> None:
    assert CHROMIUM is not None
    program = [
        CHROMIUM,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--virtual-time-budget=20000",
        "--dump-dom",
    ]
    program += [f"--user-data-dir={tmp_path}", (folder / "contributions.html").as_uri()]
    dom = subprocess.run(program, capture_output=True, text=True, timeout=120, check=True).stdout
    document = json.loads((folder / "contributions.json").read_text(encoding="utf-8"))
    drawn = re.findall(r'<text class="annotation-text"[^>]*>([^<]*)<', dom)
    values = [value for row in document["contributions"].values() for value in row.values()]
    assert [float(text) for text in drawn] == [round(value, 2) for value in values]  # written into the heat map
    assert len(re.findall(r'<g class="point">', dom)) == 2  # a bar a task


def test_a_failed_training_stops_with_one_line(recipe: Path, tmp_path: Path) -> None:
    diverging = dataclasses.replace(load_recipe(recipe), learning_rate=1e30)
    with pytest.warns(RuntimeWarning, match="not finite"), pytest.raises(UsageError, match=r"^mini, seed 0: the "):
        measure_contributions(diverging, tmp_path / "out", Console(file=io.StringIO()), 0.5, 1.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tasks", "left"], "two tasks or more to balance or compare, not left alone"),
        (["--tasks", "left,rihgt"], "unknown task 'rihgt': did you mean 'right'?"),
        (["--mini", "0.5"], "expected shares 0 < mini < large <= 1, not mini 0.5 and large 0.25"),
        (["--large", "2"], "--large: expected a share above 0 and up to 1, such as 0.25 or 1/4, not '2'"),
    ],
)
def test_wrong_use_gives_one_line_and_code_2(
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert_refused(["contributions", *arguments], message, capsys, tmp_path)
