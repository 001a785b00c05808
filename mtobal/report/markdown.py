"""The results as Markdown, to paste into a note or a README."""

from __future__ import annotations

import html
import re

from mtobal.report.cost import cost_table
from mtobal.report.explanations import explanations
from mtobal.report.runs import budget, failed, tuned_settings
from mtobal.report.table import Column, Summary, SummaryRow, verdict_text


def markdown(summary: Summary) -> str:
    """Write the headline, the table and what its columns mean."""
    header = ["row", "seeds", *(_heading(column) for column in summary.columns)]
    header += [escape(heading) for heading, _ in summary.verdicts]
    headings, costs = cost_table(summary)
    lines = [
        f"# {escape(summary.experiment.title)}",
        "",
        escape(summary.headline),
        "",
        line(header),
        line(["---", *["---:"] * (len(header) - 1)]),
        *(line(_cells(summary, row)) for row in summary.lines),
        "",
        "Test metrics: mean ± sample standard deviation over seeds [95 % interval of the mean, from 3 seeds on]. "
        "Bold: best multi-task value of the column.",
        "",
        *(f"- `{column.label}`: {escape(column.note)}" for column in summary.columns if column.note),
        *(f"- {title}: {escape(text)}" for title, text in explanations(summary)),
        *(f"- Selection: {escape(selection)}" for selection in summary.selections),
        *(f"- {escape(note)}" for note in summary.notes),
        f"- Budget: {budget(summary)}",
        *(f"- Tuned: {escape(row)}: {escape(setting)}" for row, setting in tuned_settings(summary)),
        *(f"- Failed: {escape(each.name)}: {escape(each.reason)}" for each in failed(summary)),
        "",
        "## Cost",
        "",
        line(headings),
        line(["---", *["---:"] * (len(headings) - 1)]),
        *(line([escape(row.name), *cells]) for row, cells in costs),
    ]
    return "\n".join(lines) + "\n"


def escape(text: str) -> str:
    r"""Show a text as it is: no markup, no raw HTML, one line.

    Examples
    --------
    >>> print(escape("<b>*a|b*"))
    &lt;b&gt;\*a\|b\*
    """
    return re.sub(r"([\\`*|\[\]])", r"\\\1", html.escape(" ".join(text.split()), quote=False))


def _heading(column: Column) -> str:
    return escape(f"{column.group} {column.label}".strip()) + f" {column.arrow}"


def _cells(summary: Summary, row: SummaryRow) -> list[str]:
    cells = [escape(row.name), row.seed_count]
    for column in summary.columns:
        cell = row.cells.get(column.key)
        text = " ".join(filter(None, [column.text(cell), column.interval(cell)]))
        cells.append(f"**{text}**" if summary.is_best(row, column) else text)
    return cells + [verdict_text(tests.get(row.name)) for _, tests in summary.verdicts]


def line(cells: list[str]) -> str:
    """Write a line of a table."""
    return f"| {' | '.join(cells)} |"
