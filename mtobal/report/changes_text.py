"""Two experiments side by side, as Markdown, as CSV and in a terminal."""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING

from mtobal.report.changes import Change, Changes
from mtobal.report.markdown import escape, line

if TYPE_CHECKING:
    from rich.table import Table

HEADINGS = ("row", "quantity", "before", "after", "change", "95 % interval", "p (Holm)", "verdict")


def changes_markdown(changes: Changes, before: str, after: str) -> str:
    """Write the headline, every comparison, and what was run otherwise."""
    lines = [
        f"# {escape(before)} and {escape(after)}",
        "",
        escape(changes.headline),
        "",
        "Two-sided t-tests over seeds, paired where three or more seeds are shared; p-values are corrected for "
        "all lines of the table. 'Not shown' is no proof that nothing changed.",
        "",
        line(list(HEADINGS)),
        line(["---", "---", *["---:"] * 5, "---"]),
        *(line([escape(cell) for cell in _cells(change)]) for change in changes.changes),
        "",
        "## Run otherwise",
        "",
        *(f"- {escape(name)}: {escape(old)} before, {escape(new)} after" for name, old, new in changes.settings),
        *(f"- Only before: {escape(name)}" for name in changes.only_before),
        *(f"- Only after: {escape(name)}" for name in changes.only_after),
    ]
    if not (changes.settings or changes.only_before or changes.only_after):
        lines.append("Nothing that is recorded.")
    return "\n".join(lines) + "\n"


def changes_csv(changes: Changes) -> str:
    """Write one line a comparison in full precision."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(
        ("row", "quantity", "before", "after", "change", "low", "high", "seeds", "p", "p_holm", "verdict")
    )
    for each in changes.changes:
        low, high = each.difference.interval or (None, None)
        numbers = (each.before, each.after, each.difference.mean, low, high, each.difference.n, each.difference.p)
        writer.writerow((each.row, each.quantity, *numbers, each.adjusted, each.verdict))
    return buffer.getvalue()


def changes_table(changes: Changes) -> Table:
    """Lay out the changes beyond noise for a terminal."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    notes = [f"{name}: {old} before, {new} after" for name, old, new in changes.settings]
    notes += [f"Only before: {name}" for name in changes.only_before]
    notes += [f"Only after: {name}" for name in changes.only_after]
    table = Table(
        title=Text(changes.headline),
        title_justify="left",
        title_style="",
        caption=Text("\n".join(notes)),
        caption_justify="left",
        box=SIMPLE_HEAD,
        padding=0,
        pad_edge=False,
        show_header=bool(changes.shown),
    )
    # Names give way when the terminal is narrow, numbers do not.
    for place, heading in enumerate(HEADINGS):
        table.add_column(heading, overflow="fold", no_wrap=place >= 2)
    for change in changes.shown:
        table.add_row(*map(Text, _cells(change)))
    return table


def _cells(change: Change) -> list[str]:
    interval = change.difference.interval
    return [
        change.row,
        change.quantity,
        f"{change.before:.4g}",
        f"{change.after:.4g}",
        f"{change.difference.mean:+.3g}",
        f"[{interval[0]:+.3g}, {interval[1]:+.3g}]" if interval else "",
        "" if change.adjusted is None else f"{change.adjusted:.2g}",
        change.verdict,
    ]
