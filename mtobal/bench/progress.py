"""What the user sees while an experiment runs: a live view in a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from datetime import timedelta
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text

from mtobal.bench.plan import Run
from mtobal.bench.records import EpochRecord, RunRecord


class ExperimentProgress:
    """Show which runs are done, how far the current one is, and how long the rest may take.

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
        self._this_run = self._bars.add_task("", total=self._epochs, note="", visible=False)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bars.stop()

    def message(self, text: str) -> None:
        """Print a line."""
        self._console.print(Text(text), soft_wrap=True)

    def skip(self, run: Run) -> None:
        """Note that a run was finished before."""
        self._end(run, "finished before")

    def start(self, run: Run) -> None:
        """Note that a run begins or resumes."""
        self._run_start = time.perf_counter()
        description = f"epochs of {run.row}, seed {run.seed}"
        self._bars.reset(self._this_run, total=self._epochs, description=description, note="", visible=True)

    def epoch(self, record: EpochRecord) -> None:
        """Note that the current run has trained an epoch."""
        finished = record.epoch + 1
        self._trained_epochs += 1
        self._bars.update(self._this_run, completed=finished, note=_shown(record.validation_metrics))
        epochs_left = (self._runs - self._done) * self._epochs - finished
        seconds = (time.perf_counter() - self._start) / self._trained_epochs * epochs_left
        self._bars.update(self._all_runs, note=f"about {timedelta(seconds=round(seconds))} left")

    def finish(self, run: Run, record: RunRecord) -> None:
        """Note that the current run is finished."""
        seconds = time.perf_counter() - self._run_start
        self._end(
            run,
            f"test {_shown(record.test_metrics)} "
            f"(epoch {record.selected_epoch + 1} of {len(record.epochs)}, {seconds:.0f} s)",
        )

    def _end(self, run: Run, outcome: str) -> None:
        self._done += 1
        self._bars.update(self._all_runs, completed=self._done)
        self.message(f"[{self._done}/{self._runs}] {run.row}, seed {run.seed}: {outcome}")


def _shown(metrics: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
