"""Task gradients that are collected over several batches before they are used."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mtobal.gradients.partition import Partition
from mtobal.gradients.task_gradients import TaskGradients


class Accumulated:
    """Sums of the gradients and means of the losses of some batches, by task.

    Attributes
    ----------
    batches : int
        How many there are.
    """

    def __init__(self) -> None:
        self.batches = 0
        self._rows: dict[int, dict[int, Tensor]] = {}
        self._losses: dict[int, list[Tensor]] = {}

    @property
    def tasks(self) -> list[int]:
        """The tasks that any of the batches had a loss of, in their order."""
        return sorted(self._losses)

    def add_losses(self, active: Sequence[int], losses: Tensor) -> None:
        """Add the losses of a batch, of shape (A,)."""
        self.batches += 1
        for task, loss in zip(active, losses.unbind(), strict=True):
            self._losses.setdefault(task, []).append(loss)

    def add_gradients(self, active: Sequence[int], gradients: TaskGradients) -> None:
        """Add the gradients of a batch."""
        for task, found in zip(active, gradients.rows(), strict=True):
            row = self._rows.setdefault(task, {})
            for place, gradient in found.items():
                row[place] = row[place] + gradient if place in row else gradient

    def losses(self) -> Tensor:
        """Return the mean loss of each of the tasks, over the batches that had one."""
        return torch.stack([torch.stack(self._losses[task]).mean() for task in self.tasks])

    def gradients(self, partition: Partition, scale: float) -> TaskGradients:
        """Return the sums of the gradients."""
        return TaskGradients.of_rows(partition, [self._rows.get(task, {}) for task in self.tasks], scale)
