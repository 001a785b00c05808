"""What each row costs, as the page and Markdown list it."""

from __future__ import annotations

from mtobal.report.runs import WHOLE, epochs_trained
from mtobal.report.table import MISSING, Column, Statistic, Summary, SummaryRow


def cost_table(summary: Summary) -> tuple[list[str], list[tuple[SummaryRow, list[str]]]]:
    """Return the headings and the cells of every row; memory and conflict have a column where recorded."""
    rows = summary.all_rows
    ratio = next(column for column in summary.columns if column.key == "cost_ratio")
    memory = any(row.peak_memory for row in rows)
    conflict = any(WHOLE in row.conflict for row in rows)
    headings = ["row", "ms / step", "relative", "steps", "epochs", "training time", "parameters"]
    headings += ["peak memory, MiB"] * memory + ["conflict"] * conflict

    def cells(row: SummaryRow) -> list[str]:
        return [
            milliseconds(row.seconds_per_step.mean) if row.seconds_per_step else MISSING,
            ratio.value(row.cells.get("cost_ratio")),
            f"{row.steps:,}",
            f"{epochs_trained(summary, row):.1f}".removesuffix(".0"),
            duration(row.training_seconds),
            f"{row.parameters:,}",
            *[_text(row.peak_memory, 1)] * memory,
            *[_text(row.conflict.get(WHOLE), 3)] * conflict,
        ]

    return headings, [(row, cells(row)) for row in rows]


def _text(cell: Statistic | None, decimals: int) -> str:
    return Column("", "", "", False, decimals, "").text(cell)


def duration(seconds: float) -> str:
    """Write a duration for people.

    Examples
    --------
    >>> [duration(seconds) for seconds in (4.26, 75, 7322)]
    ['4.3 s', '1 min 15 s', '2 h 2 min']
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def milliseconds(seconds: float) -> str:
    """Write the time of a step."""
    return f"{seconds * 1000:.2f}" if seconds < 0.1 else f"{seconds * 1000:.0f}"
