"""Data sets by name, each split, and with its tasks."""

from mtobal.data.digits import digits
from mtobal.data.loading import evaluation_loader, training_loader
from mtobal.data.multitask import Batch, InMemoryDataset, MultiTaskData, MultiTaskDataset
from mtobal.data.registry import available, checks, load, lookup, prepare
from mtobal.data.rooms import rooms

__all__ = [
    "Batch",
    "InMemoryDataset",
    "MultiTaskData",
    "MultiTaskDataset",
    "available",
    "checks",
    "digits",
    "evaluation_loader",
    "load",
    "lookup",
    "prepare",
    "rooms",
    "training_loader",
]
