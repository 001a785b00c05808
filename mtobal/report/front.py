"""What rows trade one task for another: each task against each, and how much the static weights cover."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from mtobal.metrics import hypervolume
from mtobal.report.static import static_rows
from mtobal.report.table import Column, Summary

MARGIN = 0.1


@dataclass(frozen=True)
class Coverage:
    """The share that some rows dominate of the box that all rows span in two metrics.

    Hypervolume, that is, in units of the box. The box reaches a tenth of the range beyond the worst values, so
    that the rows at its ends count. `static` is the share of the rows of fixed weights, None where there is none,
    and `everything` that of all rows. `front` names the fixed weights that no other fixed weights dominate.
    """

    x: str
    y: str
    static: float | None
    everything: float
    front: tuple[str, ...]


def main_metrics(summary: Summary) -> list[Column]:
    """Return the first metric of each task, which stands for it."""
    first: dict[str, Column] = {}
    for column in summary.columns:
        if column.group:
            first.setdefault(column.group, column)
    return list(first.values())


def coverages(summary: Summary) -> list[Coverage]:
    """Measure every pair of tasks in which the rows differ; rows that diverged are left out."""
    static = {row.name for row in static_rows(summary.rows)}
    found = []
    for x, y in combinations(main_metrics(summary), 2):
        points = {row.name: (row.mean(x.key), row.mean(y.key)) for row in summary.rows}
        points = {name: point for name, point in points.items() if np.isfinite(point).all()}
        if len(points) < 2:
            continue
        table = np.array(list(points.values())) * [
            1 if x.higher_is_better else -1,
            1 if y.higher_is_better else -1,
        ]
        low, size = table.min(axis=0), np.ptp(table, axis=0)
        if not size.all():
            continue
        scaled = dict(zip(points, (((table - low) / size + MARGIN) / (1 + MARGIN)).tolist(), strict=True))
        fixed = {name: point for name, point in scaled.items() if name in static}
        everything = _volume(list(scaled.values()))
        volume = _volume(list(fixed.values())) if fixed else None
        found.append(Coverage(x.key, y.key, volume, everything, _front(fixed)))
    return found


def _front(points: Mapping[str, Sequence[float]]) -> tuple[str, ...]:
    """Name the points that no other dominates, where higher is better, from left to right."""
    front: list[str] = []
    highest = -np.inf
    for name in sorted(points, key=lambda name: tuple(points[name]), reverse=True):
        if points[name][1] > highest:
            front.append(name)
            highest = points[name][1]
    return tuple(reversed(front))


def _volume(points: Sequence[Sequence[float]]) -> float:
    return hypervolume(points, [0.0, 0.0], [True, True])
