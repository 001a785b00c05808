"""Training splits that keep some of each task's labels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Generator, Tensor

from mtobal.data import Batch, MultiTaskDataset
from mtobal.data.multitask import BatchPerTask, OneTaskBatches
from mtobal.data.seeding import derive_seed
from mtobal.errors import UsageError
from mtobal.tasks import Task

SCANNED_AT_ONCE = 256


class LabelSubsets:
    """Draws subsets of the labels of a training split.

    Parameters
    ----------
    dataset : MultiTaskDataset
        The training split. It is read through once, to learn which sample has a label of which task.
    tasks : sequence of Task
        Whose labels are meant; targets of other tasks stay as they are.
    """

    def __init__(self, dataset: MultiTaskDataset, tasks: Sequence[Task]) -> None:
        self.dataset = dataset
        self.tasks = tuple(tasks)
        self.labelled: dict[str, Tensor] = {}
        if isinstance(dataset, BatchPerTask):
            for task in tasks:
                self.labelled |= _labelled_samples(dataset.parts[task.name], [task])
        else:
            self.labelled = _labelled_samples(dataset, tasks)

    def count(self, task: str, share: float) -> int:
        """Return how many samples keep their label of a task."""
        return max(1, round(share * int(self.labelled[task].sum())))

    def draw(self, shares: Mapping[str, float], seed: int) -> MultiTaskDataset:
        """Return the samples that keep a label, without the labels that they do not keep.

        With the same seed, the smaller of two shares of a task is part of the larger.

        Parameters
        ----------
        shares : mapping from task to float
            How much of its labelled samples each task keeps; at least one.
        seed : int
            Of the draw.
        """
        kept = {task: self._keep(task, share, seed) for task, share in shares.items()}
        dataset = self.dataset
        if isinstance(dataset, BatchPerTask):
            return BatchPerTask(
                {
                    task.name: _Subset(dataset.parts[task.name], [task], {task.name: kept[task.name]})
                    for task in self.tasks
                }
            )
        if isinstance(dataset, OneTaskBatches):
            subset = _Subset(dataset.dataset, self.tasks, kept)
            _, groups = torch.unique(dataset.groups[subset.rows], return_inverse=True)  # of those that are left
            return OneTaskBatches(subset, groups)
        return _Subset(dataset, self.tasks, kept)

    def _keep(self, task: str, share: float, seed: int) -> Tensor:
        members = self.labelled[task].nonzero()[:, 0]
        place = [each.name for each in self.tasks].index(task)
        generator = Generator().manual_seed(derive_seed("label subset", seed, place))
        chosen = members[torch.randperm(len(members), generator=generator)[: self.count(task, share)]]
        return torch.zeros_like(self.labelled[task]).index_fill(0, chosen, True)


class _Subset(MultiTaskDataset):
    """The samples of another data set that keep a label, the other labels hidden."""

    def __init__(self, dataset: MultiTaskDataset, tasks: Sequence[Task], kept: Mapping[str, Tensor]) -> None:
        self.dataset = dataset
        self.tasks = tuple(tasks)
        self.rows = torch.stack(list(kept.values())).any(0).nonzero()[:, 0]
        self.kept = {task: mask[self.rows] for task, mask in kept.items()}
        self.augment = dataset.augment

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int | Tensor) -> Batch:
        inputs, targets = self.dataset[int(self.rows[index]) if isinstance(index, int) else self.rows[index]]
        targets = dict(targets)
        for task in self.tasks:
            if task.name in targets:
                target, kept = targets[task.name], self.kept[task.name][index]
                kept = kept.reshape(kept.shape + (1,) * (target.dim() - kept.dim()))
                targets[task.name] = target.where(kept, missing_mark(task, target))
        return inputs, targets


def missing_mark(task: Task, target: Tensor) -> float:
    """Return the value that a task takes for a missing label, by asking the task.

    Examples
    --------
    >>> from mtobal.tasks import Classification, Depth
    >>> missing_mark(Classification("kind", num_classes=2), torch.tensor([0, 1]))
    -1
    >>> missing_mark(Depth("depth"), torch.tensor([0.5]))
    0
    """
    for mark in (0, -1, math.nan) if target.is_floating_point() else (0, -1):
        if not task.labelled(torch.full_like(target, mark)).any():
            return mark
    raise UsageError(
        f"task {task.name!r} takes none of 0, -1 and NaN for a missing label, so that none of its labels can be "
        "hidden; let its labelled() refuse one of them."
    )


def _labelled_samples(dataset: MultiTaskDataset, tasks: Sequence[Task]) -> dict[str, Tensor]:
    """Return which samples have a label of each task, shape (N,) of bool."""
    found: dict[str, list[Tensor]] = {task.name: [] for task in tasks}
    for rows in torch.arange(len(dataset)).split(SCANNED_AT_ONCE):  # type: ignore[no-untyped-call]
        _, targets = dataset[rows]
        for task in tasks:
            found[task.name].append(task.labelled(targets[task.name]).reshape(len(rows), -1).any(1))
    labelled = {name: torch.cat(chunks) for name, chunks in found.items()}
    for name, mask in labelled.items():
        if not mask.any():
            raise UsageError(f"task {name!r} has no label in the training split; leave it out with --tasks.")
    return labelled
