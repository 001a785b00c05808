"""The form of every data set: three splits, the tasks, and the shape of one input."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor
from torch.utils.data import Dataset

from mtobal.tasks import Task

Batch = tuple[Tensor, dict[str, Tensor]]
"""Inputs, and targets by task; of one sample, or of many stacked along the first dimension."""


class InMemoryDataset(Dataset[Batch]):
    """Inputs and targets held as tensors, so that a whole batch is taken by one indexing.

    Parameters
    ----------
    inputs : Tensor of shape (N, ...)
        All inputs.
    targets : mapping from str to Tensor of shape (N, ...)
        All targets by task.
    """

    def __init__(self, inputs: Tensor, targets: Mapping[str, Tensor]) -> None:
        self.inputs = inputs
        self.targets = dict(targets)

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int | Tensor) -> Batch:
        """Return one sample, or the batch of the samples whose indices a tensor holds."""
        return self.inputs[index], {task: target[index] for task, target in self.targets.items()}


@dataclass(frozen=True)
class MultiTaskData:
    """A data set ready for training.

    Attributes
    ----------
    train, validation, test : InMemoryDataset
        The splits.
    tasks : tuple of Task
        The tasks; their names are the keys of the targets.
    input_shape : tuple of int
        The shape of one input, without the batch.
    """

    train: InMemoryDataset
    validation: InMemoryDataset
    test: InMemoryDataset
    tasks: tuple[Task, ...]
    input_shape: tuple[int, ...]
