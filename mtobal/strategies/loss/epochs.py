"""Weightings by the average losses of epochs."""

from __future__ import annotations

import torch
from torch import Tensor

from mtobal.strategies.base import LossWeighting, Step


class EpochWeighting(LossWeighting):
    """Base of the weightings that look at the average loss of each task over an epoch.

    A task that is missing from a batch is left out of its average there. The training loop says when an epoch
    ends; Lightning's callback does, and in a loop of one's own ``balancer.end_epoch()`` must be called.
    """

    mean: Tensor | None
    seen: Tensor | None
    epoch: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", None)
        self.register_buffer("seen", None)
        self.register_buffer("epoch", torch.zeros((), dtype=torch.int64))

    def learn_epoch(self, averages: Tensor) -> None:
        """Learn from an epoch.

        Parameters
        ----------
        averages : Tensor of shape (K,)
            Average loss of each task; NaN for one that had no loss in the whole epoch.
        """
        raise NotImplementedError

    def update(self, step: Step) -> None:
        losses = step.require_losses(self.card.name)
        if self.mean is None or self.seen is None:
            self.mean, self.seen = losses.new_zeros(len(step.tasks)), losses.new_zeros(len(step.tasks))
        self.mean, self.seen = self.mean.to(losses), self.seen.to(losses)
        active = list(step.active)
        self.seen[active] += 1
        self.mean[active] += (losses - self.mean[active]) / self.seen[active]

    def end_epoch(self) -> None:
        if self.mean is not None and self.seen is not None:
            self.learn_epoch(self.mean.where(self.seen > 0, torch.nan))
            self.mean, self.seen = torch.zeros_like(self.mean), torch.zeros_like(self.seen)
        self.epoch = self.epoch + 1


def of_active(values: Tensor | None, step: Step, losses: Tensor) -> Tensor:
    """Return what is known of the active tasks as the losses are stored, NaN where nothing is known."""
    return torch.full_like(losses, torch.nan) if values is None else values.to(losses)[list(step.active)]


def fill(values: Tensor | None, averages: Tensor) -> Tensor:
    """Return the values that are known, and the averages where none is."""
    return averages if values is None else averages.where(values.to(averages).isnan(), values.to(averages))


def share(scores: Tensor) -> Tensor:
    """Share out as many weights as there are tasks by the softmax of their scores.

    Parameters
    ----------
    scores : Tensor of shape (A,)
        NaN where a task has none yet.

    Returns
    -------
    Tensor of shape (A,)
        With an average of one; one for a task without score.

    Examples
    --------
    >>> share(torch.tensor([0.0, 0.0, torch.nan]))
    tensor([1., 1., 1.])
    """
    known = ~scores.isnan()
    shares = scores.where(known, -torch.inf).softmax(0) * known.sum()
    return shares.where(known, 1.0)
