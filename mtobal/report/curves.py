"""What the charts of the page draw: curves by task, averaged over seeds, one line a row."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from mtobal.bench.records import EpochRecord, RunRecord, finite_or_null
from mtobal.report.table import BASELINE, Summary, SummaryRow

# Hues that colour-blind readers can tell apart come first, and all of them stand out on white and on black.
PALETTE = (
    "#0a7cc4",
    "#d55e00",
    "#009e73",
    "#c65f9f",
    "#d99000",
    "#7b68c8",
    "#4aa8d8",
    "#a6761d",
    "#6a9a1f",
    "#d6336c",
)
BASELINE_COLOUR = "#8a8f98"


def row_colours(summary: Summary) -> dict[str, str]:
    """Give each row its colour, in the order of the recipe: the ranking does not change it."""
    names = list(dict.fromkeys(run.row for run in summary.experiment.runs if run.kind == "multi"))
    colours = {name: _colour(index) for index, name in enumerate(names)}
    return {BASELINE: BASELINE_COLOUR, **colours}


def _colour(index: int) -> str:
    if index < len(PALETTE):
        return PALETTE[index]
    # The golden angle keeps further hues apart, however many there are.
    return f"hsl({(index - len(PALETTE)) * 137.508 % 360:.0f}, 55%, 50%)"


def chart_data(summary: Summary) -> dict[str, Any]:
    """Gather everything that the page's charts need, as plain JSON values (null for NaN)."""
    colours = row_colours(summary)
    tasks = list(dict.fromkeys(column.group for column in summary.columns if column.group))
    rows = summary.all_rows
    data: dict[str, list[dict[str, Any]]] = {
        "rows": [
            {"name": row.name, "colour": colours[row.name], "baseline": row.kind == "baseline"} for row in rows
        ],
        "losses": [{"task": task, "lines": _lines(rows, task, _losses)} for task in tasks],
        "weights": [{"task": task, "lines": _lines(rows, task, _weights)} for task in tasks],
        "cost": [
            {
                "row": index,
                "ratio": row.cells["cost_ratio"].mean,
                "delta": row.cells["delta_m"].mean,
                "spread": row.cells["delta_m"].spread,
            }
            for index, row in enumerate(rows)
            if {"cost_ratio", "delta_m"} <= row.cells.keys()
        ],
    }
    data["weights"] = [chart for chart in data["weights"] if chart["lines"]]
    result: dict[str, Any] = finite_or_null(data)
    return result


Quantities = Mapping[str, float]


def _losses(record: EpochRecord, task: str) -> Quantities:
    return {
        name: losses[task]
        for name, losses in (("train", record.train_losses), ("validation", record.validation_losses))
        if task in losses
    }


def _weights(record: EpochRecord, task: str) -> Quantities:
    """Return the applied weight, and its share, which compares strategies whose weights differ in scale."""
    if len(record.weights) < 2 or task not in record.weights:
        return {}
    total = sum(abs(weight) for weight in record.weights.values())
    weight = record.weights[task]
    return {"applied": weight, "share": weight / total if total else math.nan}


def _lines(
    rows: Iterable[SummaryRow], task: str, quantities: Callable[[EpochRecord, str], Quantities]
) -> list[dict[str, Any]]:
    lines = []
    for index, row in enumerate(rows):
        if line := _mean_line(row.runs, task, quantities):
            lines.append({"row": index, **line})
    return lines


def _mean_line(
    runs: Iterable[RunRecord], task: str, quantities: Callable[[EpochRecord, str], Quantities]
) -> dict[str, list[float]]:
    """Return each quantity by epoch, averaged over the seeds that have that epoch."""
    values: dict[int, dict[str, list[float]]] = {}
    for run in runs:
        for record in run.epochs:
            for name, value in quantities(record, task).items():
                values.setdefault(record.epoch, {}).setdefault(name, []).append(value)
    if not values:
        return {}
    epochs = sorted(values)
    names = dict.fromkeys(name for by_name in values.values() for name in by_name)
    return {
        "epochs": [float(epoch) for epoch in epochs],
        **{
            name: [float(np.mean(values[epoch][name])) if name in values[epoch] else math.nan for epoch in epochs]
            for name in names
        },
    }
