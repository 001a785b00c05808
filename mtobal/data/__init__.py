"""Data sets by name, each split, and with its tasks."""

from mtobal.data.digits import digits
from mtobal.data.loading import evaluation_loader, training_loader
from mtobal.data.multitask import Batch, InMemoryDataset, MultiTaskData
from mtobal.data.registry import available, load, lookup

__all__ = [
    "Batch",
    "InMemoryDataset",
    "MultiTaskData",
    "available",
    "digits",
    "evaluation_loader",
    "load",
    "lookup",
    "training_loader",
]
