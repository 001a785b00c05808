"""Scores that compare multi-task methods with single-task training and with each other.

Each score is a function of plain numbers, and a torchmetric over it that collects the metrics of runs.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from mtobal.metrics.functional import delta_m, delta_p, hypervolume, mean_rank

if TYPE_CHECKING:
    from mtobal.metrics.delta import DeltaM, DeltaP
    from mtobal.metrics.front import Hypervolume
    from mtobal.metrics.ranking import MeanRank

__all__ = ["DeltaM", "DeltaP", "Hypervolume", "MeanRank", "delta_m", "delta_p", "hypervolume", "mean_rank"]

_ROOMS = {"DeltaM": "delta", "DeltaP": "delta", "Hypervolume": "front", "MeanRank": "ranking"}


def __getattr__(name: str) -> Any:
    """Load the torchmetrics when one is first asked for: a report does without."""
    if name in _ROOMS:
        return getattr(importlib.import_module(f"mtobal.metrics.{_ROOMS[name]}"), name)
    raise AttributeError(f"module 'mtobal.metrics' has no attribute {name!r}")
