"""What the user sees while an experiment runs: a live view in a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from datetime import timedelta
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.text import Text

from mtobal.bench.launch import Event, Finished, Started, Told, Trained
from mtobal.bench.plan import Run
from mtobal.bench.records import EpochRecord, RunRecord


class ExperimentProgress:
    """Show how many runs are done, how far those at work are, and how long the rest may take.

    Parameters
    ----------
    console : Console
        Where to print.
    runs : int
        How many runs the experiment has.
    epochs : int
        How many epochs each of them has.
    """

    def __init__(self, console: Console, runs: int, epochs: int) -> None:
        self._console = console
        self._runs = runs
        self._epochs = epochs
        self._done = 0
        self._trained_epochs = 0
        self._at_work: dict[Run, _AtWork] = {}
        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )

    def __enter__(self) -> ExperimentProgress:
        self._bars.start()
        self._start = time.perf_counter()
        self._all_runs = self._bars.add_task("runs", total=self._runs, note="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bars.stop()

    def show(self, event: Event) -> None:
        """Note what a launcher reports."""
        if isinstance(event, Told):
            self._print(event.text)
        elif isinstance(event, Started):
            self._begin(event.run)
        elif isinstance(event, Trained):
            self._advance(event.run, event.epoch)
        elif isinstance(event, Finished):
            self._finish(event.run, event.record)
        else:
            self._end(event.run, f"failed: {event.failure.reason}")

    def skip(self, run: Run) -> None:
        """Note that a run was finished before."""
        self._end(run, "finished before")

    def _print(self, text: str) -> None:
        self._console.print(Text(text), soft_wrap=True)

    def _begin(self, run: Run) -> None:
        self._remove(run)  # begun before by a worker that died
        description = f"epochs of {run.label}"
        self._at_work[run] = _AtWork(self._bars.add_task(description, total=self._epochs, note=""))

    def _advance(self, run: Run, record: EpochRecord) -> None:
        self._trained_epochs += 1
        at_work = self._at_work[run]
        at_work.epochs = record.epoch + 1
        self._bars.update(at_work.bar, completed=at_work.epochs, note=_shown(record.validation_metrics))
        finished = sum(other.epochs for other in self._at_work.values())
        epochs_left = (self._runs - self._done) * self._epochs - finished
        seconds = (time.perf_counter() - self._start) / self._trained_epochs * epochs_left
        self._bars.update(self._all_runs, note=f"about {timedelta(seconds=max(0, round(seconds)))} left")

    def _finish(self, run: Run, record: RunRecord) -> None:
        took = f", {self._at_work[run].seconds:.0f} s" if run in self._at_work else ""
        epoch = f"epoch {record.selected_epoch + 1} of {len(record.epochs)}"
        metrics = "tried" if run.trial is not None else f"test {_shown(record.test_metrics)}"
        self._end(run, f"{metrics} ({epoch}{took})")

    def _end(self, run: Run, outcome: str) -> None:
        self._remove(run)
        self._done += 1
        self._bars.update(self._all_runs, completed=self._done)
        self._print(f"[{self._done}/{self._runs}] {run.label}: {outcome}")

    def _remove(self, run: Run) -> None:
        at_work = self._at_work.pop(run, None)
        if at_work is not None:
            self._bars.remove_task(at_work.bar)


class _AtWork:
    """A run that is being trained: its bar, and how far it is."""

    def __init__(self, bar: TaskID) -> None:
        self.bar = bar
        self.epochs = 0
        self._start = time.perf_counter()

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._start


def _shown(metrics: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
