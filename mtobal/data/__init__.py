"""Data sets by name, each split, and with its tasks."""

from mtobal.data.digits import digits
from mtobal.data.loading import evaluation_loader, training_loader
from mtobal.data.multitask import Batch, InMemoryDataset, MultiTaskData, MultiTaskDataset
from mtobal.data.registry import available, checkable, checks, load, lookup, preparable, prepare, register
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
    "checkable",
    "checks",
    "digits",
    "evaluation_loader",
    "load",
    "lookup",
    "preparable",
    "prepare",
    "register",
    "restoration",
    "rooms",
    "training_loader",
]
