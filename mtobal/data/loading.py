"""Batches whose order depends on the seed and the epoch alone, so that a run can resume at any epoch."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from mtobal.data.multitask import Batch, InMemoryDataset
from mtobal.data.seeding import derive_seed


class ShuffledBatches(Sampler[Tensor]):
    """Indices of the batches of one epoch, shuffled anew for every epoch.

    The trainer announces the epoch through `set_epoch`. No state is carried from epoch to epoch.

    Examples
    --------
    >>> batches = ShuffledBatches(num_samples=5, batch_size=2, seed=0)
    >>> batches.set_epoch(3)
    >>> sorted(torch.cat(list(batches)).tolist())
    [0, 1, 2, 3, 4]
    """

    def __init__(self, num_samples: int, batch_size: int, seed: int) -> None:
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of this epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-self.num_samples // self.batch_size)

    def __iter__(self) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(derive_seed("batches", self.seed, self.epoch))
        order = torch.randperm(self.num_samples, generator=generator)
        yield from order.split(self.batch_size)  # type: ignore[no-untyped-call]


class OrderedBatches(Sampler[Tensor]):
    """Indices of the batches in the order of the data set."""

    def __init__(self, num_samples: int, batch_size: int) -> None:
        self.num_samples = num_samples
        self.batch_size = batch_size

    def __len__(self) -> int:
        return -(-self.num_samples // self.batch_size)

    def __iter__(self) -> Iterator[Tensor]:
        yield from torch.arange(self.num_samples).split(self.batch_size)  # type: ignore[no-untyped-call]


def training_loader(dataset: InMemoryDataset, batch_size: int, seed: int) -> DataLoader[Batch]:
    """Return a loader of shuffled batches."""
    return _loader(dataset, ShuffledBatches(len(dataset), batch_size, seed))


def evaluation_loader(dataset: InMemoryDataset, batch_size: int = 1024) -> DataLoader[Batch]:
    """Return a loader that goes through the data set once, in order."""
    return _loader(dataset, OrderedBatches(len(dataset), batch_size))


def _loader(dataset: InMemoryDataset, batches: Sampler[Tensor]) -> DataLoader[Batch]:
    # Without a batch size the loader passes each batch of indices to the data set as it is, which saves fetching
    # and stacking single samples.
    return DataLoader(dataset, batch_size=None, sampler=batches)
