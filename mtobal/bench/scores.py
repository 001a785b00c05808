"""The one number by which epochs and trials are chosen."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

from mtobal.bench.records import MetricInfo
from mtobal.tasks import Task


def mean_main_metric(tasks: Sequence[Task], infos: Sequence[MetricInfo], metrics: Mapping[str, float]) -> float:
    """Return the mean of the tasks' main metrics, each signed so that higher is better; minus infinity for NaN."""
    higher_is_better = {info.name: info.higher_is_better for info in infos}
    names = [f"{task.name}/{task.main_metric}" for task in tasks]
    score = statistics.fmean(metrics[name] if higher_is_better[name] else -metrics[name] for name in names)
    return -math.inf if math.isnan(score) else score
