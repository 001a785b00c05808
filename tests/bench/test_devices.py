"""One run over several processes: the numbers of one, records from the first alone, and no process that hangs."""

from __future__ import annotations

import dataclasses
import io
import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from experiments import untimed, write_recipe
from mtobal.bench.experiment import run_experiment
from mtobal.bench.launch import Event, Trained
from mtobal.bench.progress import ExperimentProgress
from mtobal.bench.recipe import Recipe, load_recipe
from mtobal.bench.records import RunRecord, load_experiment
from mtobal.data import InMemoryDataset, training_loader
from mtobal.data.multitask import BatchPerTask
from mtobal.errors import UsageError

ROWS = ["ew", "pcgrad"]


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    # Six batches of 21 and one of 4: shares are not all of one size.
    data = {"name": "digits", "train_pairs": 130, "validation_pairs": 60, "test_pairs": 60}
    path = write_recipe(tmp_path / "tiny.yaml", data=data, strategies=ROWS, batch_size=21, epochs=6)
    return load_recipe(path)


def numbers(record: RunRecord) -> dict[str, Any]:
    epochs = {
        f"{epoch.epoch}/{kind}/{name}": value
        for epoch in untimed(record).epochs
        for kind, values in dataclasses.asdict(epoch).items()
        if isinstance(values, dict)
        for name, value in values.items()
    }
    return {**epochs, **record.test_metrics, "steps": record.steps, "selected": record.selected_epoch}


@pytest.mark.slow
def test_two_devices_train_as_one_and_outlive_the_death_of_a_process(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run_experiment(recipe, tmp_path / "one", Console(file=io.StringIO())) == ()

    epochs: list[tuple[str, int]] = []
    show = ExperimentProgress.show

    def watch(progress: ExperimentProgress, event: Event) -> None:
        if isinstance(event, Trained):
            epochs.append((event.run.row, event.epoch.epoch))
            if epochs[-1] == ("pcgrad", 0):
                second = max(multiprocessing.active_children(), key=lambda worker: worker.pid or 0)
                os.kill(second.pid or 0, signal.SIGKILL)
        show(progress, event)

    together = dataclasses.replace(recipe, devices=2)
    with monkeypatch.context() as patch:
        patch.setattr(ExperimentProgress, "show", watch)
        (failure,) = run_experiment(together, tmp_path / "two", Console(file=io.StringIO()))
    assert (failure.row, failure.reason) == ("pcgrad", "its process was killed by SIGKILL")
    assert multiprocessing.active_children() == []
    assert (tmp_path / "two" / "pcgrad" / "seed-0" / "last.ckpt").exists()
    assert len(epochs) == len(set(epochs))  # the first process alone reports

    assert run_experiment(together, tmp_path / "two", Console(file=io.StringIO())) == ()
    alone, resumed = (load_experiment(tmp_path / folder).runs for folder in ("one", "two"))
    assert [run.row for run in resumed] == ["single(left)", "single(right)", *ROWS]
    for one, two in zip(alone, resumed, strict=True):
        assert numbers(two) == pytest.approx(numbers(one), rel=1e-4), one.row


def test_the_shares_of_a_batch_are_the_batch() -> None:
    inputs = torch.arange(25.0)[:, None]
    single = InMemoryDataset(inputs, {"a": inputs})
    for dataset in (single, BatchPerTask({"a": single, "b": InMemoryDataset(inputs, {"b": inputs})})):
        whole = list(training_loader(dataset, 11, seed=0))
        shares = [list(training_loader(dataset, 11, seed=0, rank=rank, ranks=2)) for rank in range(2)]
        for (_, targets), *parts in zip(whole, *shares, strict=True):
            for task, target in targets.items():
                found = [part[1][task] for part in parts]
                if len(target) < 4:  # too small to share out
                    assert all(torch.equal(part, target) for part in found)
                else:
                    assert torch.equal(torch.cat(found), target)


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"devices": (os.cpu_count() or 1) + 1}, {}, "are more than this machine has cores"),
        ({"devices": 2}, {"launcher": "ray"}, "do not go with --launcher ray"),
        ({"devices": 2, "num_nodes": 2}, {}, "needs the same command on every node, with NODE_RANK from 0 to 1"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(
    recipe: Recipe, tmp_path: Path, changes: dict[str, int], options: dict[str, Any], message: str
) -> None:
    recipe = dataclasses.replace(recipe, batch_size=4096, **changes)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=message) as error:
        run_experiment(recipe, tmp_path / "out", Console(file=io.StringIO()), **options)
    assert "\n" not in str(error.value)


def test_a_batch_has_two_samples_for_every_device(recipe: Recipe) -> None:
    with pytest.raises(UsageError, match="batch_size 21 is too small for 11 devices"):
        dataclasses.replace(recipe, devices=11)
