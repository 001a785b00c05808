"""Data sets by name, each split, and with its tasks."""

from mtobal.data.digits import digits
from mtobal.data.loading import evaluation_loader, training_loader
from mtobal.data.multitask import Batch, InMemoryDataset, MultiTaskData, MultiTaskDataset
from mtobal.data.registry import available, checks, load, lookup, prepare
from mtobal.data.restoration import restoration
from mtobal.data.rooms import rooms
from mtobal.data.samplers import PredictiveTaskSampler, RelevanceSampler

__all__ = [
    "Batch",
    "InMemoryDataset",
    "MultiTaskData",
    "MultiTaskDataset",
    "PredictiveTaskSampler",
    "RelevanceSampler",
    "available",
    "checks",
    "digits",
    "evaluation_loader",
    "load",
    "lookup",
    "prepare",
    "restoration",
    "rooms",
    "training_loader",
]
