"""Scores that compare multi-task methods with single-task training and with each other."""

from __future__ import annotations

from mtobal.metrics.functional import delta_m, delta_p, mean_rank

__all__ = ["delta_m", "delta_p", "mean_rank"]
