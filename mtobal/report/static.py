"""Fixed weights: the simplest rival of every strategy, and the one of them that validation chooses."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mtobal.bench.records import MetricInfo, RunRecord
from mtobal.metrics import delta_m, mean_rank
from mtobal.report.table import REFERENCE, SummaryRow

MOST_SHOWN = 5
"""Rows of fixed weights up to which each is one like any other; of more, the best on validation stands for all."""


def is_static(strategy: str) -> bool:
    """Whether a strategy is fixed weights and nothing else: a point of the sweep that others have to beat.

    Examples
    --------
    >>> [is_static(spec) for spec in ("ew", "static(weights=[1, 2])", "static(weights=[1, 2])+pcgrad", "uw")]
    [True, True, False, False]
    """
    return bool(re.fullmatch(r"(ew|static)\s*(\([^()]*\))?", strategy.strip()))


def static_rows(rows: Sequence[SummaryRow]) -> list[SummaryRow]:
    """Return the rows of fixed weights."""
    return [row for row in rows if is_static(row.runs[0].strategy)]


def folded_rows(rows: Sequence[SummaryRow]) -> frozenset[str]:
    """Name the rows of a large sweep, which are trials of one method; equal weighting stays a row of its own."""
    static = static_rows(rows)
    if len(static) <= MOST_SHOWN:
        return frozenset()
    return frozenset(row.name for row in static if row.name != REFERENCE)


def best_static(
    rows: Sequence[SummaryRow],
    singles: Sequence[RunRecord],
    infos: Sequence[MetricInfo],
    recipe: Mapping[str, Any],
) -> SummaryRow | None:
    """Return the fixed weights that are best on validation, under a name that says so.

    Best is the lowest ``delta_m`` of the validation metrics at the selected epochs, a mean over seeds; without a
    single-task baseline, the lowest mean rank in them. None where there is nothing to choose among, where a
    metric was not recorded, where all diverged, and where the recipe evaluates on the test split alone
    (`average_last`).
    """
    static = static_rows(rows)
    if len(static) < 2 or recipe.get("average_last"):
        return None
    upward = {info.name: info.higher_is_better for info in infos}
    by_row = {row.name: [_on_validation(run) for run in row.runs] for row in static}
    if any(upward.keys() - metrics.keys() for runs in by_row.values() for metrics in runs):
        return None
    baseline = _means([_on_validation(run) for run in singles])
    if all(baseline.get(name, 0.0) != 0 for name in upward):
        scores = {
            name: float(np.mean([delta_m(metrics, baseline, upward) for metrics in runs]))
            for name, runs in by_row.items()
        }
    else:
        scores = mean_rank({name: _means(runs) for name, runs in by_row.items()}, upward)
    # A mean rank is a number even where a metric is none.
    sound = [
        row for row in static if all(math.isfinite(value) for run in by_row[row.name] for value in run.values())
    ]
    if not sound:
        return None
    best = min(sound, key=lambda row: scores[row.name])
    name = f"static weights, best of {len(static)} on validation"
    return dataclasses.replace(best, name=name, kind="chosen")


def _on_validation(run: RunRecord) -> Mapping[str, float]:
    return next((epoch.validation_metrics for epoch in run.epochs if epoch.epoch == run.selected_epoch), {})


def _means(runs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    names = dict.fromkeys(name for metrics in runs for name in metrics)
    return {name: float(np.mean([metrics[name] for metrics in runs if name in metrics])) for name in names}
