"""Scores that compare multi-task methods with single-task training and with each other.

Each score is a function of plain numbers, and a torchmetric over it that collects the metrics of runs.
"""

from __future__ import annotations

from mtobal.metrics.delta import DeltaM, DeltaP
from mtobal.metrics.front import Hypervolume
from mtobal.metrics.functional import delta_m, delta_p, hypervolume, mean_rank
from mtobal.metrics.ranking import MeanRank

__all__ = ["DeltaM", "DeltaP", "Hypervolume", "MeanRank", "delta_m", "delta_p", "hypervolume", "mean_rank"]
