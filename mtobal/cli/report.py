"""The command that reports on what was trained."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jsonargparse import Namespace
    from rich.console import Console


def report(options: Namespace) -> None:
    """Report on one experiment, or on what changed from it to a later one."""
    from rich.console import Console

    if options.later is None:
        show_report(Path(options.folder), Console())
    else:
        _show_changes(Path(options.folder), Path(options.later), Console())


def show_report(folder: Path, console: Console) -> None:
    """Write the report of an experiment, print its table, and say where the page is."""
    from mtobal.bench.records import load_experiment
    from mtobal.report import console_table, summary_table, write_report

    summary = summary_table(load_experiment(folder))
    page = write_report(summary)
    console.print(console_table(summary))
    console.print(f"Report: {page}", soft_wrap=True, markup=False, highlight=False)


def _show_changes(before: Path, after: Path, console: Console) -> None:
    from mtobal.report import build_changes, changes_table

    console.print(changes_table(build_changes(before, after)))
    console.print(f"Every comparison: {after / 'changes.md'}", soft_wrap=True, markup=False, highlight=False)
