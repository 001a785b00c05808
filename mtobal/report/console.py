"""The results table in a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mtobal.report.table import BASELINE, Column, Summary, SummaryRow

if TYPE_CHECKING:
    from rich.table import Table

# More metrics than this do not fit a terminal; the scores still do.
MOST_METRICS = 6


def console_table(summary: Summary, width: int = 80) -> Table:
    """Lay out the results table for a terminal; where it has no room for all metrics, the scores alone."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    columns = summary.columns
    remarks = [summary.headline, *summary.notes]
    if summary.folded:
        remarks.append(f"The {len(summary.folded)} rows of static weights are in the report.")
    if sum(bool(column.group) for column in columns) > MOST_METRICS or _width(summary) > width:
        columns = tuple(column for column in columns if not column.group)
        remarks.append("The metrics of each task are in the report.")
    # Text, not markup: a row's name may hold brackets.
    table = Table(
        title=Text(summary.experiment.title),
        caption=Text("\n".join(["", *remarks])),
        caption_justify="left",
        box=SIMPLE_HEAD,
        padding=0,
        pad_edge=False,
        show_edge=False,
        collapse_padding=True,
    )
    # The name gives way when the terminal is narrow, the numbers do not.
    table.add_column("row", overflow="fold")
    table.add_column("n", justify="right", no_wrap=True)
    for column in columns:
        table.add_column(Text(_heading(column), justify="right"), justify="right", no_wrap=True)

    def cells(row: SummaryRow) -> list[Text]:
        return [Text(_cell(row, column), "bold" if summary.is_best(row, column) else "") for column in columns]

    for row in summary.lines:
        if row.name not in summary.folded:
            table.add_row(Text(row.name), Text(row.seed_count), *cells(row), end_section=row.kind == "baseline")
    return table


def _width(summary: Summary) -> int:
    """Return the width of the table with all its columns, and names that are folded at the longest usual one."""
    seeds = [row.seed_count for row in summary.lines]
    columns = [
        [*_heading(column).split("\n"), *(_cell(row, column) for row in summary.lines)]
        for column in summary.columns
    ]
    return len(BASELINE) + sum(1 + max(map(len, texts)) for texts in [seeds, *columns])


def _cell(row: SummaryRow, column: Column) -> str:
    return column.text(row.cells.get(column.key), "±")


def _heading(column: Column) -> str:
    """Write the heading on two lines where it has two parts, so that the table fits 80 columns."""
    lines = [column.group, column.label] if column.group else column.label.rsplit(" ", 1)
    return "\n".join(lines) + f" {column.arrow}"
