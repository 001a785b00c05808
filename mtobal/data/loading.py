"""Batches whose order depends on the seed and the epoch alone, so that a run can resume at any epoch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from mtobal.data.multitask import Batch, Indices, MultiTaskDataset
from mtobal.data.seeding import derive_seed


class Draw(NamedTuple):
    """The samples of one batch, and the seed of its augmentation."""

    indices: Indices
    seed: int


class ShuffledBatches(Sampler[Draw]):
    """The batches of one epoch, shuffled anew for every epoch.

    The trainer announces the epoch through `set_epoch`. No state is carried from epoch to epoch, and none lies in
    worker processes: a batch is the same with any number of them.

    Where several ranks train together, each reads its part of every batch; one too small to give each of them two
    samples is read whole by all.

    Examples
    --------
    >>> from mtobal.data import InMemoryDataset
    >>> batches = ShuffledBatches(InMemoryDataset(torch.zeros(5, 1), {}), batch_size=3, seed=0)
    >>> batches.set_epoch(3)
    >>> sorted(torch.cat([draw.indices for draw in batches]).tolist())
    [0, 1, 2, 3, 4]
    """

    def __init__(
        self, dataset: MultiTaskDataset, batch_size: int, seed: int, rank: int = 0, ranks: int = 1
    ) -> None:
        self.dataset = dataset
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.ranks = ranks
        self.epoch = 0
        self._length = len(dataset.batches(batch_size, torch.Generator()))

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of this epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Draw]:
        generator = torch.Generator().manual_seed(derive_seed("batches", self.seed, self.epoch))
        for number, indices in enumerate(self.dataset.batches(self.batch_size, generator)):
            mine = (self.rank,) if self.rank else ()
            seed = derive_seed("augmentation", self.seed, self.epoch, number, *mine)
            yield Draw(_part(indices, self.rank, self.ranks), seed)


class OrderedBatches(Sampler[Indices]):
    """Indices of the batches in the order of the data set."""

    def __init__(self, dataset: MultiTaskDataset, batch_size: int) -> None:
        self._batches = dataset.batches(batch_size)

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Indices]:
        yield from self._batches


class _TrainingBatches(Dataset[Batch]):
    """What a training loader reads from: a data set that is asked for training batches."""

    def __init__(self, dataset: MultiTaskDataset) -> None:
        self._dataset = dataset

    def __getitem__(self, draw: Draw) -> Batch:
        return self._dataset.training_batch(draw.indices, draw.seed)


def training_loader(
    dataset: MultiTaskDataset, batch_size: int, seed: int, workers: int = 0, *, rank: int = 0, ranks: int = 1
) -> DataLoader[Batch]:
    """Return a loader of shuffled, augmented batches.

    Parameters
    ----------
    dataset : MultiTaskDataset
        The training split.
    batch_size : int
        Samples a batch.
    seed : int
        Decides order and augmentation.
    workers : int
        How many processes read ahead; 0 reads in this one. The batches do not depend on it.
    rank, ranks : int
        Which part of every batch to read, where several processes train together.
    """
    return _loader(_TrainingBatches(dataset), ShuffledBatches(dataset, batch_size, seed, rank, ranks), workers)


def evaluation_loader(dataset: MultiTaskDataset, batch_size: int = 1024, workers: int = 0) -> DataLoader[Batch]:
    """Return a loader that goes through the data set once, in order and as it is."""
    return _loader(dataset, OrderedBatches(dataset, batch_size), workers)


def _part(indices: Indices, rank: int, ranks: int) -> Indices:
    if isinstance(indices, dict):
        return {
            task: rows.tensor_split(ranks)[rank] if len(rows) >= 2 * ranks else rows
            for task, rows in indices.items()
        }
    return indices.tensor_split(ranks)[rank] if len(indices) >= 2 * ranks else indices


def _loader(dataset: Dataset[Batch], batches: Sampler[Draw] | Sampler[Indices], workers: int) -> DataLoader[Batch]:
    return DataLoader(
        dataset,
        # Without a batch size the loader passes each batch of indices to the data set as it is, which saves
        # fetching and stacking single samples.
        batch_size=None,
        sampler=batches,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
    )
