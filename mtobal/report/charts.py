"""What the charts of the page draw, as plain values."""

from __future__ import annotations

import math
from typing import Any

from mtobal.bench.records import finite_or_null
from mtobal.report.colours import row_colours
from mtobal.report.curves import conflict, curves, losses, shortened, validation_metric, weights
from mtobal.report.front import coverages, main_metrics
from mtobal.report.static import static_rows
from mtobal.report.table import Statistic, Summary, SummaryRow, verdict_text


def chart_data(summary: Summary) -> dict[str, Any]:
    """Gather everything that the page's charts need, as plain JSON values (null for NaN)."""
    colours = row_colours(summary)
    tasks = list(dict.fromkeys(column.group for column in summary.columns if column.group))
    rows = summary.all_rows
    static = {row.name for row in static_rows(summary.rows)}
    layers = list(dict.fromkeys(layer for row in rows for layer in row.conflict))
    by_weight = [{"task": task, "lines": curves(rows, task, weights)} for task in tasks]
    data = {
        "rows": [
            {
                "name": row.name,
                "colour": colours[row.name],
                "baseline": row.kind == "baseline",
                "static": row.name in static,
                "folded": row.name in summary.folded,
            }
            for row in rows
        ],
        "losses": [{"task": task, "lines": curves(rows, task, losses)} for task in tasks],
        "metrics": [
            {
                "name": column.key,
                "higher": column.higher_is_better,
                "lines": curves(rows, column.key, validation_metric),
            }
            for column in summary.columns
            if column.group
        ],
        "weights": [chart for chart in by_weight if chart["lines"]],
        "conflict": [
            {
                "layer": layer,
                "lines": curves(rows, layer, conflict),
                "means": [shortened(row.conflict[layer].mean) if layer in row.conflict else None for row in rows],
            }
            for layer in layers
        ],
        "cost": [
            {
                "row": index,
                "delta": row.mean("delta_m"),
                "range": _range(row.cells["delta_m"]),
                "time": _cost(row.seconds_per_step, 1000),
                "memory": _cost(row.peak_memory, 1),
            }
            for index, row in enumerate(rows)
            if "delta_m" in row.cells
        ],
        "best_static": next(
            (i for i, row in enumerate(rows) if summary.best_static and row.runs == summary.best_static.runs), None
        ),
        "trade": _trade(summary),
        "ranks": _ranks(summary),
        "pairs": _pairs(summary),
    }
    result: dict[str, Any] = finite_or_null(data)
    return result


def _range(cell: Statistic) -> dict[str, float | None]:
    """Return the ends of the interval; where there is none, of the spread."""
    if cell.interval is not None:
        return {"low": cell.interval[0], "high": cell.interval[1]}
    if cell.spread is None:
        return {"low": None, "high": None}
    return {"low": cell.mean - cell.spread, "high": cell.mean + cell.spread}


def _cost(cell: Statistic | None, scale: float) -> dict[str, Any] | None:
    if cell is None:
        return None
    ends = {end: None if value is None else shortened(scale * value) for end, value in _range(cell).items()}
    return {"value": shortened(scale * cell.mean), **ends}


def _trade(summary: Summary) -> dict[str, Any]:
    metrics = main_metrics(summary)

    def point(index: int, row: SummaryRow) -> dict[str, Any]:
        cells = [row.cells.get(metric.key) for metric in metrics]
        return {
            "row": index,
            "values": [math.nan if cell is None else shortened(cell.mean) for cell in cells],
            "ranges": [None if cell is None else _range(cell) for cell in cells],
        }

    places = {metric.key: index for index, metric in enumerate(metrics)}
    return {
        "metrics": [{"name": metric.key, "higher": metric.higher_is_better} for metric in metrics],
        "points": [point(index, row) for index, row in enumerate(summary.all_rows)] if len(metrics) > 1 else [],
        "coverages": [
            {
                "x": places[each.x],
                "y": places[each.y],
                "static": None if each.static is None else shortened(each.static),
                "everything": shortened(each.everything),
                "front": each.front,
            }
            for each in coverages(summary)
        ],
    }


def _ranks(summary: Summary) -> dict[str, Any] | None:
    """Return the critical-difference diagram, by position among all rows."""
    comparison = summary.comparison
    if comparison.ranks is None:
        return None
    place = {row.name: index for index, row in enumerate(summary.all_rows)}
    rows = [place[name] for name in comparison.rows]
    order = sorted(range(len(rows)), key=lambda index: comparison.ranks.ranks[index])  # type: ignore[union-attr]
    return {
        "points": [{"row": rows[index], "rank": comparison.ranks.ranks[index]} for index in order],
        "critical": comparison.ranks.critical_difference,
        "groups": [[rows[index] for index in group] for group in comparison.ranks.groups],
    }


def _pairs(summary: Summary) -> dict[str, Any] | None:
    """Return every test of one row against another, by position among all rows."""
    comparison = summary.comparison
    if len(comparison.rows) < 2 or comparison.cannot_tell:
        return None
    place = {row.name: index for index, row in enumerate(summary.all_rows)}
    return {
        "rows": [place[name] for name in comparison.rows],
        "tests": [
            [
                place[pair.first],
                place[pair.second],
                shortened(pair.difference.mean),
                pair.verdict,
                verdict_text(pair).partition(", ")[2],
            ]
            for pair in comparison.pairs
        ],
    }
