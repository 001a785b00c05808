"""What changes over the epochs of a run, averaged over seeds: losses, metrics, task weights, conflict."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from mtobal.bench.records import EpochRecord, RunRecord
from mtobal.report.table import SummaryRow

Quantities = Mapping[str, float]
Reader = Callable[[EpochRecord, str], Quantities]


def curves(rows: Iterable[SummaryRow], key: str, read: Reader) -> list[dict[str, Any]]:
    """Return one line a row: the epochs, and each quantity that `read` finds under `key` in them."""
    lines = []
    for index, row in enumerate(rows):
        if line := _mean_line(row.runs, key, read):
            lines.append({"row": index, **line})
    return lines


def losses(record: EpochRecord, task: str) -> Quantities:
    """Return a task's own losses, before any weighting."""
    return {
        name: values[task]
        for name, values in (("train", record.train_losses), ("validation", record.validation_losses))
        if task in values
    }


def validation_metric(record: EpochRecord, name: str) -> Quantities:
    """Return a metric on the validation split."""
    return {"validation": record.validation_metrics[name]} if name in record.validation_metrics else {}


def weights(record: EpochRecord, task: str) -> Quantities:
    """Return the applied weight, and its share, which compares strategies whose weights differ in scale."""
    if len(record.weights) < 2 or task not in record.weights:
        return {}
    total = sum(abs(weight) for weight in record.weights.values())
    weight = record.weights[task]
    return {"applied": weight, "share": weight / total if total else math.nan}


def conflict(record: EpochRecord, layer: str) -> Quantities:
    """Return the share of the pairs of tasks whose gradients point against each other."""
    return {"conflict": record.conflict[layer]} if layer in record.conflict else {}


def _mean_line(runs: Sequence[RunRecord], key: str, read: Reader) -> dict[str, list[float]]:
    """Return each quantity by epoch, averaged over the seeds that have that epoch."""
    values: dict[int, dict[str, list[float]]] = {}
    for run in runs:
        for record in run.epochs:
            for name, value in read(record, key).items():
                values.setdefault(record.epoch, {}).setdefault(name, []).append(value)
    if not values:
        return {}
    epochs = sorted(values)
    names = dict.fromkeys(name for by_name in values.values() for name in by_name)
    return {
        "epochs": [float(epoch) for epoch in epochs],
        **{
            name: [
                shortened(sum(found) / len(found)) if (found := values[epoch].get(name)) else math.nan
                for epoch in epochs
            ]
            for name in names
        },
    }


def shortened(number: float) -> float:
    """Keep as many digits as a chart can show: they are most of what the page weighs."""
    return float(f"{number:.5g}")
