"""The form of every data set: three splits, the tasks, and the shape of one input."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor
from torch.utils.data import Dataset

from mtobal.models.base import Inputs
from mtobal.tasks import Task

Batch = tuple[Inputs, dict[str, Tensor]]
"""Inputs, and targets by task; of one sample, or of many stacked along the first dimension."""

Indices = Tensor | dict[str, Tensor]
"""The samples of a batch; by task, where every task has samples of its own."""

Augmentation = Callable[[Batch, Generator], Batch]
"""From a batch to what a training step sees of it; all randomness comes from the generator."""


class MultiTaskDataset(Dataset[Batch]):
    """Samples that are taken a batch at a time.

    Attributes
    ----------
    augment : callable or None
        What training changes at random in a batch.
    """

    augment: Augmentation | None = None

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: Any) -> Batch:
        """Return one sample, or the batch of the samples whose indices a tensor holds."""

    def batches(self, batch_size: int, generator: Generator | None = None) -> Sequence[Indices]:
        """Return the indices of every batch of one epoch; in order, or shuffled by a generator.

        Of a shuffled epoch, a last batch of one sample is left out where there are others: a batch norm that sees
        one vector a channel cannot train on it, and the next epoch has another sample there.
        """
        return _batches(_order(len(self), generator), batch_size, trains=generator is not None)

    def training_batch(self, indices: Indices, seed: int) -> Batch:
        """Return a batch as a training step sees it; equal seeds augment alike, in whatever process."""
        batch = self[indices]
        return batch if self.augment is None else self.augment(batch, Generator().manual_seed(seed))


class InMemoryDataset(MultiTaskDataset):
    """Inputs and targets held as tensors, so that a whole batch is taken by one indexing.

    Parameters
    ----------
    inputs : Tensor of shape (N, ...)
        All inputs.
    targets : mapping from str to Tensor of shape (N, ...)
        All targets by task.
    augment : callable, optional
        What training changes at random in a batch.
    """

    def __init__(self, inputs: Tensor, targets: Mapping[str, Tensor], augment: Augmentation | None = None) -> None:
        self.inputs = inputs
        self.targets = dict(targets)
        self.augment = augment

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int | Tensor) -> Batch:
        """Return one sample, or the batch of the samples whose indices a tensor holds."""
        return _take(self.inputs, index), {task: _take(target, index) for task, target in self.targets.items()}


class FileDataset(MultiTaskDataset):
    """Samples read from disk one by one, when they are asked for.

    Parameters
    ----------
    keys : sequence
        What names each sample.
    read : callable
        From a key to the sample. Worker processes get a copy of it.
    augment : callable, optional
        What training changes at random in a batch.
    """

    def __init__(
        self, keys: Sequence[Any], read: Callable[[Any], Batch], augment: Augmentation | None = None
    ) -> None:
        self.keys = keys
        self.read = read
        self.augment = augment

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int | Tensor) -> Batch:
        """Return one sample, or the batch of the samples whose indices a tensor holds."""
        if isinstance(index, int):
            return self.read(self.keys[index])
        inputs, targets = zip(*[self.read(self.keys[i]) for i in index.tolist()], strict=True)
        return torch.stack(inputs), {task: torch.stack([each[task] for each in targets]) for task in targets[0]}

    def subset(self, rows: Iterable[int], augment: Augmentation | None = None) -> FileDataset:
        """Return some of the samples as a data set of their own."""
        return FileDataset([self.keys[row] for row in rows], self.read, augment)


class OneTaskBatches(MultiTaskDataset):
    """The samples of another data set in batches that hold a single task each.

    Parameters
    ----------
    dataset : MultiTaskDataset
        The samples; each has a label of one task and misses those of the others.
    groups : Tensor of shape (N,)
        The number of each sample's task.
    """

    def __init__(self, dataset: MultiTaskDataset, groups: Tensor) -> None:
        self.dataset = dataset
        self.groups = groups
        self.augment = dataset.augment

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int | Tensor) -> Batch:
        """Return what the data set behind it returns."""
        return self.dataset[index]

    def batches(self, batch_size: int, generator: Generator | None = None) -> Sequence[Indices]:
        """Return the batches of all tasks; shuffled, those of one task lie scattered over the epoch."""
        batches: list[Tensor] = []
        for group in range(int(self.groups.max()) + 1):
            members = (self.groups == group).nonzero()[:, 0]
            order = members[_order(len(members), generator)]
            batches += _batches(order, batch_size, trains=generator is not None)
        return [batches[i] for i in _order(len(batches), generator).tolist()]


class BatchPerTask(MultiTaskDataset):
    """A data set for each task; a batch holds inputs and targets of every task, by task.

    An epoch of training is as long as the largest of them. The others start over as often as that takes, each time
    in another order. In order, every sample comes once, and a task that is through is missing from the batches
    that follow.

    Parameters
    ----------
    parts : mapping from str to MultiTaskDataset
        The data set of each task, whose targets are of that task alone.
    """

    def __init__(self, parts: Mapping[str, MultiTaskDataset]) -> None:
        self.parts = dict(parts)

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts.values())

    def __getitem__(self, index: dict[str, Tensor]) -> Batch:
        """Return the batch of the samples whose indices a tensor holds for each task."""
        return _by_task({task: self.parts[task][rows] for task, rows in index.items()})

    def batches(self, batch_size: int, generator: Generator | None = None) -> Sequence[Indices]:
        """Return the indices of every batch by task."""
        steps = -(-max(len(part) for part in self.parts.values()) // batch_size)
        split: dict[str, Sequence[Tensor]] = {}
        for task, part in self.parts.items():
            order = _order(len(part), generator)
            while generator is not None and len(order) < steps * batch_size:
                order = torch.cat([order, _order(len(part), generator)])
            split[task] = _batches(order[: steps * batch_size], batch_size, trains=False)  # all of them full
        return [{task: rows[step] for task, rows in split.items() if step < len(rows)} for step in range(steps)]

    def training_batch(self, indices: Indices, seed: int) -> Batch:
        """Return a batch in which every task's inputs are augmented as its own data set says."""
        assert isinstance(indices, dict)
        return _by_task({task: self.parts[task].training_batch(rows, seed) for task, rows in indices.items()})


@dataclass(frozen=True)
class MultiTaskData:
    """A data set ready for training.

    Attributes
    ----------
    train, validation, test : MultiTaskDataset
        The splits.
    tasks : tuple of Task
        The tasks; their names are the keys of the targets.
    input_shape : tuple of int
        The shape of one input, without the batch.
    """

    train: MultiTaskDataset
    validation: MultiTaskDataset
    test: MultiTaskDataset
    tasks: tuple[Task, ...]
    input_shape: tuple[int, ...]


def _order(number: int, generator: Generator | None) -> Tensor:
    return torch.arange(number) if generator is None else torch.randperm(number, generator=generator)


def _take(values: Tensor, index: int | Tensor) -> Tensor:
    # Copies whole samples, where indexing by a tensor goes through their entries one by one.
    return values.index_select(0, index) if isinstance(index, Tensor) else values[index]


def _batches(order: Tensor, batch_size: int, trains: bool) -> Sequence[Tensor]:
    batches: Sequence[Tensor] = order.split(batch_size)  # type: ignore[no-untyped-call]
    leftover = trains and batch_size > 1 and len(batches) > 1 and len(batches[-1]) == 1
    return batches[:-1] if leftover else batches


def _by_task(batches: Mapping[str, Batch]) -> Batch:
    inputs: dict[str, Tensor] = {}
    targets: dict[str, Tensor] = {}
    for task, (values, labels) in batches.items():
        assert isinstance(values, Tensor)
        inputs[task] = values
        targets |= labels
    return inputs, targets
