"""Write the report files into the folder of an experiment."""

from __future__ import annotations

from pathlib import Path

from mtobal.bench.records import load_experiment, write_text_atomic
from mtobal.report.document import document
from mtobal.report.markdown import markdown
from mtobal.report.page import page
from mtobal.report.summary import summary_table
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
    folder = Path(folder)
    summary = summary_table(load_experiment(folder))
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
