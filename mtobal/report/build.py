"""Write the report files into the folder of an experiment."""

from __future__ import annotations

from pathlib import Path

from mtobal.bench.records import load_experiment, write_text_atomic
from mtobal.report.changes import Changes, find_changes
from mtobal.report.changes_text import changes_csv, changes_markdown
from mtobal.report.document import document
from mtobal.report.markdown import markdown
from mtobal.report.page import page
from mtobal.report.summary import summary_table
from mtobal.report.table import Summary
from mtobal.report.tidy import differences_csv, results_csv


def build_report(folder: Path) -> Path:
    """Write ``report.html``, ``report.md``, ``report.json`` and two CSV files beside the runs of an experiment.

    The same records give the same bytes, so a rebuilt report changes only when a result does.

    Parameters
    ----------
    folder
        The folder of an experiment, as `mtobal bench` writes it.

    Returns
    -------
    Path
        The page, ``report.html``: one file that needs no network.

    Raises
    ------
    UsageError
        If the folder holds no finished run, or a record cannot be read.
    """
    return write_report(summary_table(load_experiment(Path(folder))))


def write_report(summary: Summary) -> Path:
    """Write the same from a summary at hand."""
    folder = summary.experiment.folder
    faces = {
        "results.csv": results_csv(summary),
        "differences.csv": differences_csv(summary),
        "report.json": document(summary),
        "report.md": markdown(summary),
        "report.html": page(summary),
    }
    for name, text in faces.items():
        write_text_atomic(folder / name, text)
    return folder / "report.html"


def build_changes(before: Path, after: Path) -> Changes:
    """Write ``changes.md`` and ``changes.csv`` into the later of two experiments, and return what changed.

    Parameters
    ----------
    before, after
        The folders of two experiments.

    Raises
    ------
    UsageError
        If a folder holds no finished run, a record cannot be read, or the two have nothing in common.
    """
    changes = find_changes(*(summary_table(load_experiment(Path(folder))) for folder in (before, after)))
    write_text_atomic(Path(after) / "changes.md", changes_markdown(changes, str(before), str(after)))
    write_text_atomic(Path(after) / "changes.csv", changes_csv(changes))
    return changes
