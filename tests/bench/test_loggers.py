"""Results in the places where others look at them."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from rich.console import Console

from experiments import write_recipe
from mtobal.bench.experiment import run_experiment
from mtobal.bench.launch import Event, Trained
from mtobal.bench.progress import ExperimentProgress
from mtobal.bench.recipe import load_recipe
from mtobal.bench.records import load_experiment
from mtobal.errors import UsageError


def test_a_logger_has_every_epoch_of_a_run_that_was_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_recipe(write_recipe(tmp_path / "tiny.yaml", strategies=["uw"], epochs=3))
    show = ExperimentProgress.show

    def stop(progress: ExperimentProgress, event: Event) -> None:
        show(progress, event)
        if isinstance(event, Trained) and event.run.row == "uw" and event.epoch.epoch == 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ExperimentProgress, "show", stop)
        with pytest.raises(KeyboardInterrupt):
            run_experiment(recipe, tmp_path / "out", Console(file=io.StringIO()), logger="csv")
    assert run_experiment(recipe, tmp_path / "out", Console(file=io.StringIO()), logger="csv") == ()
    (run,) = (run for run in load_experiment(tmp_path / "out").runs if run.row == "uw")
    with (tmp_path / "out" / "logs" / "uw" / "seed-0" / "metrics.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    epochs = [line for line in lines if line["weight/left"]]
    assert [float(line["weight/left"]) for line in epochs] == [epoch.weights["left"] for epoch in run.epochs]
    (test,) = (line for line in lines if line["test/left/accuracy"])
    assert float(test["test/left/accuracy"]) == run.test_metrics["left/accuracy"]


def test_tensorboard_reads_what_its_logger_wrote(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    recipe = load_recipe(write_recipe(tmp_path / "tiny.yaml", strategies=["ew"]))
    assert run_experiment(recipe, tmp_path / "out", Console(file=io.StringIO()), logger="tensorboard") == ()
    events = EventAccumulator(str(tmp_path / "out" / "logs" / "ew" / "seed-0"))
    events.Reload()
    (run,) = (run for run in load_experiment(tmp_path / "out").runs if run.row == "ew")
    seen = [event.value for event in events.Scalars("validation/left/accuracy")]
    assert seen == pytest.approx([epoch.validation_metrics["left/accuracy"] for epoch in run.epochs])


def test_a_logger_that_cannot_be_used_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load_recipe(write_recipe(tmp_path / "tiny.yaml"))
    with pytest.raises(UsageError, match="unknown logger 'tensorbord': did you mean 'tensorboard'"):
        run_experiment(recipe, tmp_path / "out", Console(), logger="tensorbord")
    monkeypatch.setattr("mtobal.bench.loggers.find_spec", lambda name: None)
    with pytest.raises(UsageError, match="logger 'wandb' needs wandb, which is not installed: pip install wandb"):
        run_experiment(recipe, tmp_path / "out", Console(), logger="wandb")
