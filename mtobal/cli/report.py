"""The command that reports on what was trained."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jsonargparse import Namespace
    from rich.console import Console


ADVICE = "make room there, or report on a copy of the folder"


def report(options: Namespace) -> None:
    """Report on one experiment, or on what changed from it to a later one."""
    from rich.console import Console

    if options.later is None:
        show_report(Path(options.folder), Console())
    else:
        _show_changes(Path(options.folder), Path(options.later), Console())


def show_report(folder: Path, console: Console) -> None:
    """Print the table of an experiment, write its report, and say where the page is."""
    from mtobal.bench.folder import writing_to
    from mtobal.bench.records import load_experiment
    from mtobal.report import console_table, summary_table, write_report

    summary = summary_table(load_experiment(folder))
    console.print(console_table(summary, console.width))
    with writing_to(folder, ADVICE):
        page = write_report(summary)
    console.print(f"Report: {page}", soft_wrap=True, markup=False, highlight=False)


def _show_changes(before: Path, after: Path, console: Console) -> None:
    from mtobal.bench.folder import writing_to
    from mtobal.report import build_changes, changes_table

    with writing_to(after, ADVICE):
        changes = build_changes(before, after)
    console.print(changes_table(changes))
    console.print(f"Every comparison: {after / 'changes.md'}", soft_wrap=True, markup=False, highlight=False)
