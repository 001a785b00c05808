"""Where runs are trained: in other processes and on a Ray cluster, whose workers may die."""

from __future__ import annotations

import io
import multiprocessing
import os
import signal
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from experiments import outcome, write_recipe
from mtobal.bench.experiment import run_experiment
from mtobal.bench.launch import Event, Started, Trained
from mtobal.bench.progress import ExperimentProgress
from mtobal.bench.recipe import Recipe, load_recipe
from mtobal.bench.records import load_experiment

ROWS = ["single(left)", "single(right)", "ew"]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    data = {"name": "digits", "train_pairs": 400, "validation_pairs": 60, "test_pairs": 60}
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    return load_recipe(write_recipe(path, data=data, strategies=["ew"], epochs=12))


@pytest.fixture(scope="module")
def undisturbed(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed") / "tiny"
    run_experiment(recipe, folder, Console(file=io.StringIO()))
    return folder


def watch(patch: pytest.MonkeyPatch, watcher: Callable[[Event], None]) -> None:
    """Let a function see every event before it is shown."""
    show = ExperimentProgress.show

    def watched(progress: ExperimentProgress, event: Event) -> None:
        watcher(event)
        show(progress, event)

    patch.setattr(ExperimentProgress, "show", watched)


@pytest.mark.slow
def test_dead_workers_and_ctrl_c_cost_no_finished_epoch(
    recipe: Recipe, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed: list[str] = []

    def disturb(event: Event) -> None:
        if isinstance(event, Trained) and not killed:
            killed.extend(ROWS[:2])
            for worker in multiprocessing.active_children():
                worker.kill()
        elif isinstance(event, Trained) and event.run.row == ROWS[2]:
            raise KeyboardInterrupt

    output = io.StringIO()
    console = Console(file=output, width=80)
    with monkeypatch.context() as patch:
        watch(patch, disturb)
        with pytest.raises(KeyboardInterrupt):
            run_experiment(recipe, tmp_path / "out", console, jobs=2)
    assert multiprocessing.active_children() == []
    assert {line.split(": ", 1)[1] for line in output.getvalue().splitlines()} == {
        "failed: its process was killed by SIGKILL"
    }
    failures = [tmp_path / "out" / row / "seed-0" / "failure.json" for row in ROWS]
    assert [path.exists() for path in failures] == [True, True, False]

    resumed: defaultdict[str, list[int]] = defaultdict(list)

    def note(event: Event) -> None:
        if isinstance(event, Trained):
            resumed[event.run.row].append(event.epoch.epoch)

    with monkeypatch.context() as patch:
        watch(patch, note)
        assert run_experiment(recipe, tmp_path / "out", console) == ()
    assert resumed["ew"][0] > 0
    assert outcome(tmp_path / "out") == outcome(undisturbed)
    assert load_experiment(tmp_path / "out").failures == ()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Tip. In future versions of Ray:FutureWarning")
def test_ray_trains_on_where_a_worker_was_killed(
    recipe: Recipe, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    started: list[str] = []
    trained: defaultdict[str, list[int]] = defaultdict(list)
    killed: list[int] = []

    def kill_one(event: Event) -> None:
        if isinstance(event, Started):
            started.append(event.run.row)
        if isinstance(event, Trained):
            trained[event.run.row].append(event.epoch.epoch)
            if not killed:
                killed.append(workers_at_work()[0])
                os.kill(killed[0], signal.SIGKILL)

    watch(monkeypatch, kill_one)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        assert run_experiment(recipe, tmp_path / "out", Console(file=io.StringIO()), launcher="ray") == ()
    finally:
        ray.shutdown()
    assert len(started) == len(ROWS) + 1
    assert all(epochs == sorted(set(epochs)) for epochs in trained.values())
    assert outcome(tmp_path / "out") == outcome(undisturbed)


def workers_at_work() -> list[int]:
    """The processes that Ray has named after the task that they have at hand."""
    commands = {int(path.parent.name): path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline")}
    return [process for process, command in commands.items() if command.startswith(b"ray::_train")]
