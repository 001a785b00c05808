"""Samplers that choose which tasks to learn from."""

from mtobal.data.samplers.l1_a_mtrl import RelevanceSampler
from mtobal.data.samplers.mpts import PredictiveTaskSampler

__all__ = ["PredictiveTaskSampler", "RelevanceSampler"]
