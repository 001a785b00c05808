"""Experiments: what they leave behind, what a second call does, and what stops them."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import re
import resource
import shutil
import signal
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from rich.console import Console

from experiments import untimed, write_recipe
from mtobal import data as data_sets
from mtobal import models
from mtobal.bench import recorder
from mtobal.bench.experiment import run_experiment
from mtobal.bench.module import MultiTaskModule
from mtobal.bench.plan import Run, static_weights
from mtobal.bench.recipe import Recipe, load_recipe
from mtobal.bench.recorder import SELECTION
from mtobal.bench.records import EpochRecord, RunRecord, load_experiment, load_run, run_folder
from mtobal.bench.run import execute_run
from mtobal.data import Batch, MultiTaskData
from mtobal.errors import UsageError

RUN = Run("uw+pcgrad", "multi", "uw+pcgrad", ("left", "right"), 0)


class Stopped(Exception):
    """Stands for whatever may end a process."""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    recipe = load_recipe(write_recipe(tmp_path_factory.mktemp("recipe") / "tiny.yaml", epochs=4))
    return dataclasses.replace(recipe, tasks=("left", "right"))


@pytest.fixture(scope="module")
def data(recipe: Recipe) -> MultiTaskData:
    return data_sets.load(**recipe.data)


@pytest.fixture(scope="module")
def finished(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "tiny"
    bench(recipe, folder)
    return folder


def bench(recipe: Recipe, folder: Path) -> str:
    output = io.StringIO()
    assert run_experiment(recipe, folder, Console(file=output, width=80)) == ()
    return output.getvalue()


def execute(
    recipe: Recipe,
    data: MultiTaskData,
    folder: Path,
    run: Run = RUN,
    on_epoch: Callable[[EpochRecord], None] = lambda record: None,
    on_message: Callable[[str], None] = pytest.fail,
) -> RunRecord:
    folder.mkdir(exist_ok=True)
    return execute_run(run, recipe, data, folder, on_epoch, on_message)


def stop_after(epoch: int) -> Callable[[EpochRecord], None]:
    def on_epoch(record: EpochRecord) -> None:
        if record.epoch == epoch:
            raise Stopped

    return on_epoch


def test_every_run_leaves_its_record(recipe: Recipe, finished: Path) -> None:
    found = load_experiment(finished)
    assert [run.row for run in found.runs] == ["single(left)", "single(right)", "ew", "uw+pcgrad"]
    assert found.unfinished == ()
    assert load_recipe(finished / "recipe.yaml") == recipe
    for run in found.runs:
        folder = run_folder(finished, run.row, run.seed)
        assert {file.name for file in folder.iterdir()} == {"config.yaml", "history.csv", "result.json"}
        assert yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8")) == run.config
        assert [epoch.epoch for epoch in run.epochs] == [0, 1, 2, 3]
        assert run.steps == 4 * 6
        assert run.seconds_per_step > 0
        assert {"python", "torch", "lightning", "numpy", "mtobal"} <= run.versions.keys()
        assert run.config["recipe"] == recipe.as_mapping()
        assert run.config["run"]["seed"] == run.seed
        for epoch in run.epochs:
            assert epoch.train_losses.keys() == epoch.validation_losses.keys() == set(run.tasks)
            assert epoch.weights.keys() == (set(run.tasks) if run.kind == "multi" else set())
    weighted = found.runs[-1]
    assert weighted.config["strategies"]["uw"]["lr"] == 0.025
    assert weighted.epochs[-1].weights != weighted.epochs[0].weights


def test_selection_looks_at_validation_alone_and_takes_the_first_best(finished: Path) -> None:
    for run in load_experiment(finished).runs:
        assert run.selection == SELECTION
        scores = [statistics.fmean(epoch.validation_metrics.values()) for epoch in run.epochs]
        assert run.selected_epoch == scores.index(max(scores))


def test_test_metrics_are_those_of_the_selected_epoch(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = dataclasses.replace(recipe, data={**recipe.data, "train_pairs": 600})
    data = data_sets.load(**recipe.data)

    def trained(name: str, epochs: int, *scores: float) -> RunRecord:
        given = iter(scores)
        monkeypatch.setattr(recorder, "mean_main_metric", lambda *_: next(given))
        return execute(dataclasses.replace(recipe, epochs=epochs), data, tmp_path / name)

    short = trained("short", 1, 0.5)
    first, last = trained("first", 4, 0.9, 0.1, 0.9, 0.2), trained("last", 4, 0.1, 0.2, 0.3, 0.4)
    assert (first.selected_epoch, last.selected_epoch) == (0, 3)
    assert first.test_metrics == short.test_metrics
    assert last.test_metrics != short.test_metrics


@pytest.mark.parametrize("strategy", ["ew", "uw", "rlw", "mgda", "uw+pcgrad"])
def test_a_stopped_run_ends_with_the_numbers_of_one_that_was_not(
    strategy: str, recipe: Recipe, data: MultiTaskData, tmp_path: Path
) -> None:
    run = Run(strategy, "multi", strategy, ("left", "right"), 3)
    whole = execute(recipe, data, tmp_path / "whole", run)
    for epoch in range(recipe.epochs):
        with pytest.raises(Stopped):
            execute(recipe, data, tmp_path / "stopped", run, stop_after(epoch))
    assert not (tmp_path / "stopped" / "result.json").exists()
    assert untimed(execute(recipe, data, tmp_path / "stopped", run)) == untimed(whole)
    assert not (tmp_path / "stopped" / "last.ckpt").exists()


def test_random_draws_of_the_global_generator_resume_too(
    recipe: Recipe, data: MultiTaskData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = models.build

    def with_dropout(*args: object, **options: object) -> torch.nn.Module:
        model = build(*args, **options)  # type: ignore[arg-type]
        model.encoder.layers.append(torch.nn.Dropout(0.5))
        return model

    monkeypatch.setattr(models, "build", with_dropout)
    whole = execute(recipe, data, tmp_path / "whole")
    with pytest.raises(Stopped):
        execute(recipe, data, tmp_path / "stopped", on_epoch=stop_after(1))
    torch.manual_seed(12345)
    assert untimed(execute(recipe, data, tmp_path / "stopped")) == untimed(whole)


def test_seeds_differ_and_a_seed_repeats(recipe: Recipe, data: MultiTaskData, tmp_path: Path) -> None:
    one, again = (execute(recipe, data, tmp_path / name) for name in ("one", "again"))
    other = execute(recipe, data, tmp_path / "other", dataclasses.replace(RUN, seed=1))
    assert untimed(one) == untimed(again)
    assert one.epochs[0].train_losses != other.epochs[0].train_losses


def test_a_strategy_draws_otherwise_under_another_seed(
    recipe: Recipe, data: MultiTaskData, tmp_path: Path
) -> None:
    def weights(name: str, spec: str, seed: int) -> dict[str, float]:
        return execute(recipe, data, tmp_path / name, Run(spec, "multi", spec, RUN.tasks, seed)).epochs[0].weights

    first = weights("first", "rlw", 0)
    assert weights("again", "rlw", 0) == first
    assert weights("run", "rlw", 1) != first
    assert weights("option", "rlw(seed=1)", 0) != first


@pytest.mark.parametrize("damage", ["cut short", "one bit flipped", "empty"])
def test_a_damaged_checkpoint_is_named_and_not_believed(
    damage: str, recipe: Recipe, data: MultiTaskData, tmp_path: Path
) -> None:
    with pytest.raises(Stopped):
        execute(recipe, data, tmp_path / "run", on_epoch=stop_after(1))
    checkpoint = tmp_path / "run" / "last.ckpt"
    content = bytearray(checkpoint.read_bytes())
    content[len(content) // 2] ^= 1
    checkpoint.write_bytes(
        {"cut short": content[: len(content) // 3], "one bit flipped": content, "empty": b""}[damage]
    )
    messages: list[str] = []
    epochs: list[int] = []
    record = execute(
        recipe,
        data,
        tmp_path / "run",
        on_epoch=lambda record: epochs.append(record.epoch),
        on_message=messages.append,
    )
    assert epochs == [0, 1, 2, 3]
    assert messages == [f"{checkpoint} is damaged: uw+pcgrad, seed 0 starts anew."]
    assert untimed(record) == untimed(execute(recipe, data, tmp_path / "whole"))


def test_a_resumed_run_trains_only_the_epochs_that_are_left(
    recipe: Recipe, data: MultiTaskData, tmp_path: Path
) -> None:
    with pytest.raises(Stopped):
        execute(recipe, data, tmp_path / "run", on_epoch=stop_after(2))
    epochs: list[int] = []
    execute(recipe, data, tmp_path / "run", on_epoch=lambda record: epochs.append(record.epoch))
    assert epochs == [3]


def test_ctrl_c_leaves_a_run_that_resumes(recipe: Recipe, data: MultiTaskData, tmp_path: Path) -> None:
    def press_ctrl_c(record: EpochRecord) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        execute(recipe, data, tmp_path / "run", on_epoch=press_ctrl_c)
    assert signal.getsignal(signal.SIGINT) is handler
    assert untimed(execute(recipe, data, tmp_path / "run")) == untimed(execute(recipe, data, tmp_path / "whole"))


def test_finished_runs_are_left_alone(recipe: Recipe, finished: Path) -> None:
    results = sorted(finished.glob("*/seed-*/*"))
    before = {path: path.stat().st_mtime_ns for path in results}
    lines = bench(recipe, finished).splitlines()
    assert {path: path.stat().st_mtime_ns for path in results} == before
    assert lines == [
        "[1/4] single(left), seed 0: finished before",
        "[2/4] single(right), seed 0: finished before",
        "[3/4] ew, seed 0: finished before",
        "[4/4] uw+pcgrad, seed 0: finished before",
    ]


def test_a_folder_is_extended_by_strategies_and_seeds(recipe: Recipe, finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "extended"
    shutil.copytree(finished, folder)
    lines = bench(dataclasses.replace(recipe, strategies=("mgda", "ew"), seeds=2), folder).splitlines()
    assert [line.split(": test")[0] for line in lines if "finished before" not in line] == [
        "[4/8] mgda, seed 0",
        "[5/8] single(left), seed 1",
        "[6/8] single(right), seed 1",
        "[7/8] mgda, seed 1",
        "[8/8] ew, seed 1",
    ]
    joined = load_recipe(folder / "recipe.yaml")
    assert joined.strategies == ("ew", "uw+pcgrad", "mgda")
    assert joined.seeds == 2
    rows = [(run.row, run.seed) for run in load_experiment(folder).runs if run.kind == "multi"]
    assert rows == [("ew", 0), ("ew", 1), ("uw+pcgrad", 0), ("mgda", 0), ("mgda", 1)]
    # A narrower call forgets nothing.
    bench(dataclasses.replace(recipe, strategies=("ew",)), folder)
    assert load_recipe(folder / "recipe.yaml") == joined


def test_another_recipe_is_refused_and_the_difference_named(recipe: Recipe, finished: Path) -> None:
    other = dataclasses.replace(recipe, epochs=9, data={**recipe.data, "offset": 2})
    with pytest.raises(UsageError) as caught:
        bench(other, finished)
    message = str(caught.value)
    assert "data.offset is 4 there and 2 now" in message
    assert "epochs is 4 there and 9 now" in message
    assert "Choose another --out" in message
    assert load_recipe(finished / "recipe.yaml") == recipe


def test_a_folder_of_something_else_is_refused(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious", encoding="utf-8")
    with pytest.raises(UsageError, match="expected an experiment or an empty folder"):
        bench(recipe, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_damaged_result_is_named(recipe: Recipe, finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(finished, folder)
    result = folder / "ew" / "seed-0" / "result.json"
    result.write_text(result.read_text(encoding="utf-8")[:100], encoding="utf-8")
    with pytest.raises(UsageError, match=r"ew/seed-0/result\.json: expected JSON"):
        bench(recipe, folder)


@pytest.mark.parametrize(
    ("tasks", "message"),
    [(("left", "rihgt"), "unknown task 'rihgt': did you mean 'right'"), (("left",), "two tasks or more")],
)
def test_wrong_tasks_are_named(recipe: Recipe, tmp_path: Path, tasks: tuple[str, ...], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        bench(dataclasses.replace(recipe, tasks=tasks), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_path_that_cannot_be_written_is_named(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(UsageError, match=f"cannot write to {tmp_path}/file/out: Not a directory"):
        bench(recipe, tmp_path / "file" / "out")


@pytest.mark.parametrize("limit", [100, 3000])
def test_a_full_disk_is_named_and_leaves_nothing_half_written(recipe: Recipe, tmp_path: Path, limit: int) -> None:
    # A limit on the size of files fails writes as a full disk does: that of the recipe, then that of a checkpoint.
    folder = tmp_path / "out"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(UsageError, match=f"cannot write to {folder}.*: File too large; choose another --out"):
            bench(recipe, folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    left = {path.name for path in folder.rglob("*") if path.is_file()}
    assert left == (set() if limit == 100 else {"recipe.yaml", "config.yaml"})
    bench(recipe, folder)
    assert len(load_experiment(folder).runs) == 4


def test_an_average_over_the_last_epochs_selects_none(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = dataclasses.replace(recipe, average_last=3, strategies=("ew",))
    with pytest.raises(
        UsageError, match="average_last is 3, but data set 'digits' has a validation split of its own"
    ):
        bench(recipe, tmp_path / "out")
    load = data_sets.load

    def without_validation(**options: object) -> MultiTaskData:
        data = load(**options)  # type: ignore[arg-type]
        return dataclasses.replace(data, validation=data.test)

    monkeypatch.setattr(data_sets, "load", without_validation)
    with pytest.raises(UsageError, match="validation split of data set 'digits' is its test split"):
        bench(dataclasses.replace(recipe, average_last=0), tmp_path / "out")
    bench(recipe, tmp_path / "out")
    for run in load_experiment(tmp_path / "out").runs:
        assert run.selection == "No selection: the mean over the last 3 epochs on the test split."
        assert run.selected_epoch == 3
        for name, value in run.test_metrics.items():
            assert value == pytest.approx(statistics.fmean(e.validation_metrics[name] for e in run.epochs[1:]))


@pytest.mark.filterwarnings("ignore:the (loss|gradient) of task:RuntimeWarning")
def test_a_run_that_fails_says_why_and_the_others_go_on(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, output = tmp_path / "out", io.StringIO()
    recipe = dataclasses.replace(recipe, strategies=("ew", "mgda"))
    step = MultiTaskModule.training_step

    def breaks(module: MultiTaskModule, batch: Batch) -> dict[str, Any] | None:
        if len(module.tasks) == 2 and module.trainer.current_epoch == 2:
            raise ZeroDivisionError("a bug\nof a user")
        return step(module, batch)

    with monkeypatch.context() as patch:
        patch.setattr(MultiTaskModule, "training_step", breaks)
        failures = run_experiment(recipe, folder, Console(file=output, width=80))
    assert [(failure.row, failure.seed, failure.reason) for failure in failures] == [
        ("ew", 0, "ZeroDivisionError: a bug of a user"),
        ("mgda", 0, "ZeroDivisionError: a bug of a user"),
    ]
    assert "in breaks" in failures[0].traceback
    assert output.getvalue().splitlines()[2:] == [
        "[3/4] ew, seed 0: failed: ZeroDivisionError: a bug of a user",
        "[4/4] mgda, seed 0: failed: ZeroDivisionError: a bug of a user",
    ]
    found = load_experiment(folder)
    assert (found.failures, found.unfinished) == (failures, ())
    assert [run.row for run in found.runs] == ["single(left)", "single(right)"]

    diverging = dataclasses.replace(recipe, learning_rate=1e30, strategies=("ew",))
    (failure,) = run_experiment(diverging, tmp_path / "diverging", Console(file=output))
    assert re.match(r"the loss of task .* is not finite, in the 10th such step in a row", failure.reason)

    # The same call tries again, from where the run had come.
    bench(recipe, folder)
    assert not list(folder.rglob("failure.json"))
    assert [run.row for run in load_experiment(folder).runs][2:] == ["ew", "mgda"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="here the accelerator is there")
def test_an_accelerator_that_is_not_there_is_named(recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="accelerator 'cuda' cannot be used here"):
        bench(dataclasses.replace(recipe, accelerator="cuda"), tmp_path / "out")


@pytest.mark.parametrize(
    ("strategy", "every", "layers"),
    [
        ("pcgrad", 0, ["all"]),
        ("pcgrad", 2, ["all", "encoder.layers"]),
        ("uw", 0, []),
        ("uw", 2, ["all", "encoder.layers"]),
    ],
)
def test_conflict_is_recorded_as_far_as_it_is_known(
    strategy: str, every: int, layers: list[str], recipe: Recipe, data: MultiTaskData, tmp_path: Path
) -> None:
    run = Run(strategy, "multi", strategy, ("left", "right"), 0)
    record = execute(dataclasses.replace(recipe, conflict_every=every, epochs=2), data, tmp_path / "run", run)
    for epoch in record.epochs:
        assert list(epoch.conflict) == layers
        # One pair of tasks in each of six steps, of which every second one is observed by layers.
        for layer, share in epoch.conflict.items():
            observed = 6 if layer == "all" and strategy == "pcgrad" else 3
            assert round(share * observed, 5) in range(observed + 1)
    plain = execute(dataclasses.replace(recipe, epochs=2), data, tmp_path / "plain", run)
    assert record.test_metrics == plain.test_metrics
    assert [epoch.train_losses for epoch in record.epochs] == [epoch.train_losses for epoch in plain.epochs]


def test_a_sweep_of_static_weights_is_extended_like_strategies(recipe: Recipe, tmp_path: Path) -> None:
    recipe = dataclasses.replace(recipe, strategies=("uw",), epochs=1)
    bench(dataclasses.replace(recipe, scalarization=1), tmp_path / "out")
    lines = bench(dataclasses.replace(recipe, scalarization=2), tmp_path / "out").splitlines()
    sweep = static_weights(2, 2)
    assert [line.split(": test")[0] for line in lines[5:]] == [f"[6/6] {sweep[2]}, seed 0"]
    found = load_experiment(tmp_path / "out")
    assert [run.row for run in found.runs if run.kind == "multi"] == ["uw", *sweep]
    assert found.recipe["scalarization"] == 2


def test_progress_in_a_terminal_tells_runs_epochs_and_time(recipe: Recipe, tmp_path: Path) -> None:
    output = io.StringIO()
    console = Console(file=output, width=120, force_terminal=True, color_system=None)
    run_experiment(recipe, tmp_path / "out", console)
    text = output.getvalue()
    assert "epochs of uw+pcgrad, seed 0" in text
    assert "4/4" in text
    assert "left/accuracy 0." in text
    assert "0:00:00 left" in text


def test_results_are_standard_json(finished: Path) -> None:
    for path in finished.glob("*/seed-*/result.json"):
        json.loads(path.read_text(encoding="utf-8"), parse_constant=pytest.fail)
        assert load_run(path.parent).row
