"""From planned runs to trained ones: what a launcher is given, what it reports, and the simplest of them.

A launcher trains runs that have not finished and reports each step of each as an event. Which one it is decides
where the runs are trained, never what comes out of them.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mtobal.bench.folder import writing_to
from mtobal.bench.loggers import make_logger
from mtobal.bench.plan import PACE, Run
from mtobal.bench.recipe import Recipe
from mtobal.bench.records import (
    FAILURE_FILE,
    RESULT_FILE,
    EpochRecord,
    Failure,
    RunRecord,
    load_run,
    save_failure,
)
from mtobal.bench.run import execute_run
from mtobal.data import MultiTaskData
from mtobal.errors import UsageError


@dataclass(frozen=True)
class Setting:
    """What all runs of an experiment share."""

    recipe: Recipe
    folder: Path
    logger: str | None = None


@dataclass(frozen=True)
class Started:
    """A run begins or resumes."""

    run: Run


@dataclass(frozen=True)
class Trained:
    """A run has trained an epoch."""

    run: Run
    epoch: EpochRecord


@dataclass(frozen=True)
class Finished:
    """A run has its result."""

    run: Run
    record: RunRecord


@dataclass(frozen=True)
class Failed:
    """A run came to no result."""

    run: Run
    failure: Failure


@dataclass(frozen=True)
class Told:
    """A line that the user should see."""

    text: str


Event = Started | Trained | Finished | Failed | Told
Report = Callable[[Event], None]
Launcher = Callable[[Sequence[Run], Setting, Report], None]


def perform(run: Run, setting: Setting, data: MultiTaskData, report: Report) -> None:
    """Train one run, and report what becomes of it; an error of its own is a failure, and other runs can go on.

    Raises
    ------
    UsageError
        The folder cannot be written, which would stop any other run too.
    KeyboardInterrupt
        The user stopped it.
    """
    folder = run.folder(setting.folder)
    with writing_to(folder):
        if (folder / RESULT_FILE).exists():  # by a process that could not tell any more
            report(Finished(run, load_run(folder)))
            return
        folder.mkdir(parents=True, exist_ok=True)
        (folder / FAILURE_FILE).unlink(missing_ok=True)
        for left_over in folder.glob(".*.tmp"):  # by a process that was killed while it wrote
            left_over.unlink()
        report(Started(run))
        logger = None
        if setting.logger is not None and run.trial is None:
            logger = make_logger(setting.logger, run, setting.recipe.title, setting.folder)
        try:
            record = execute_run(
                run,
                setting.recipe,
                data,
                folder,
                on_epoch=lambda epoch: report(Trained(run, epoch)),
                on_message=lambda text: report(Told(text)),
                pace=_pace(run, setting),
                logger=logger,
            )
        except OSError:
            raise
        except Exception as error:
            report(failed(run, setting, _reason(error), traceback.format_exc()))
        else:
            report(Finished(run, record))


def attend(run: Run, setting: Setting, data: MultiTaskData) -> Failure | None:
    """Train a run as a further process of its team, which leaves nothing; return why it failed, if it did."""
    try:
        execute_run(
            run,
            setting.recipe,
            data,
            run.folder(setting.folder),
            on_epoch=lambda epoch: None,
            on_message=lambda text: None,
            pace=_pace(run, setting),
        )
    except Exception as error:
        return Failure(run.row, run.seed, _reason(error), traceback.format_exc())
    return None


def failed(run: Run, setting: Setting, reason: str, trace: str = "") -> Failed:
    """Write down why a run failed."""
    failure = Failure(run.row, run.seed, reason, trace)
    folder = run.folder(setting.folder)
    with writing_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
        save_failure(folder, failure)
    return Failed(run, failure)


def one_after_another(data: MultiTaskData, runs: Sequence[Run], setting: Setting, report: Report) -> None:
    """Train the runs in this process."""
    for run in runs:
        perform(run, setting, data, report)


def _pace(run: Run, setting: Setting) -> RunRecord | None:
    if setting.recipe.budget == "epochs" or run.kind == "single" or run.row == PACE:
        return None
    pace = replace(run, row=PACE, strategy=PACE)
    if not (pace.folder(setting.folder) / RESULT_FILE).exists():
        raise UsageError(f"there is no time to keep pace with: {pace.label} has no result.")
    return load_run(pace.folder(setting.folder))


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, UsageError) else f"{type(error).__name__}: {text}"
