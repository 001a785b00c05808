"""Group optimization for multi-task alignment."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mtobal.errors import UsageError
from mtobal.strategies.base import LossWeighting, Step
from mtobal.strategies.card import Card
from mtobal.strategies.loss.positive import log_slopes, positive_losses
from mtobal.strategies.registry import register


def interval_groups(values: npt.NDArray[np.float64], num_groups: int) -> npt.NDArray[np.int64]:
    """Sort numbers into groups with the least sum of squared distances from the group means.

    The exact optimum of k-means in one dimension: the best groups are intervals, found by dynamic programming
    over where they end.

    Parameters
    ----------
    values : array of shape (K,)
    num_groups : int
        At most K.

    Returns
    -------
    array of shape (K,)
        The group of each number, from 0 to ``num_groups - 1`` in rising order.

    Examples
    --------
    >>> interval_groups(np.array([5.0, 0.1, 5.2, 0.0]), 2)
    array([1, 0, 1, 0])
    """
    order = np.argsort(values, kind="stable")
    rising = values[order]
    count = len(rising)
    # spread[i, j]: sum of squared distances of rising[i..j] from their mean, built up one number at a time.
    spread = np.full((count, count), np.inf)
    np.fill_diagonal(spread, 0.0)
    means, squares = rising.copy(), np.zeros(count)
    for size in range(2, count + 1):
        deltas = rising[size - 1 :] - means[:-1]
        means = means[:-1] + deltas / size
        squares = squares[:-1] + deltas**2 * (size - 1) / size
        np.fill_diagonal(spread[:, size - 1 :], squares)
    best = spread[0]
    starts = np.zeros((num_groups, count), dtype=np.int64)
    for group in range(1, num_groups):
        totals = np.full((count, count), np.inf)  # of a last group that starts at i and ends at j
        totals[1:] = best[:-1, None] + spread[1:]
        starts[group] = totals.argmin(0)
        best = totals.min(0)
    labels = np.empty(count, dtype=np.int64)
    end = count
    for group in reversed(range(num_groups)):
        start = starts[group, end - 1] if group else 0
        labels[order[start:end]] = group
        end = start
    return labels


def go4align_weights(log_shares: Tensor, losses: Tensor, num_groups: int = 1) -> Tensor:
    r"""Return group averages of the shares, each scaled by the inverse of its loss.

    ``v_k = p_k sum_j L_j / L_k`` with ``p = softmax(log_shares)``; tasks with similar v form a group and get the
    mean of it.

    Parameters
    ----------
    log_shares, losses : Tensor of shape (K,)
        The losses are not negative; below 1e-8 they count as that in the division.
    num_groups : int
        At most K groups are made.

    Returns
    -------
    Tensor of shape (K,)
        Positive.

    References
    ----------
    Shen, Wang, Xiao, van Noord and Worring, GO4Align: Group Optimization for Multi-Task Alignment, NeurIPS 2024,
    arXiv:2404.06486.

    Examples
    --------
    >>> import torch
    >>> go4align_weights(torch.zeros(3), torch.tensor([1.0, 1.0, 2.0]), num_groups=2)
    tensor([1.3333, 1.3333, 0.6667])
    """
    values = log_shares.softmax(0) * losses.sum() * log_slopes(losses)
    if num_groups == 1:
        return values.mean().expand_as(values).clone()
    exact = values.double().cpu().numpy()
    groups = interval_groups(exact, min(num_groups, len(exact)))
    means = np.bincount(groups, exact) / np.bincount(groups)
    return torch.from_numpy(means[groups]).to(values)


@register("go4align")
class GO4Align(LossWeighting):
    """Give tasks of similar risk a common weight, so that groups of tasks advance together.

    Parameters
    ----------
    num_groups : int
        Groups of tasks; with one, all tasks have the same weight.
    step_size : float
        How fast a task's share falls with its loss.
    """

    card = Card(
        summary="Gives tasks of similar risk a common weight, so that groups of tasks advance together.",
        when="Many tasks of which some are alike. With one group it only adapts the learning rate.",
        paper="Shen et al., GO4Align: Group Optimization for Multi-Task Alignment, NeurIPS 2024, "
        "arXiv:2404.06486.",
        defaults_source="One group and a step size of 1e-4, as on the official command line.",
        state="K shares",
        scale="own",
        heads="weighted",
    )

    log_shares: Tensor | None

    def __init__(self, num_groups: int = 1, step_size: float = 1e-4) -> None:
        super().__init__()
        if num_groups < 1:
            raise UsageError(f"go4align: num_groups must be at least one, not {num_groups}.")
        if step_size < 0:
            raise UsageError(f"go4align: the step size must not be negative, but is {step_size}.")
        self.num_groups = num_groups
        self.step_size = step_size
        self.register_buffer("log_shares", None)

    def weigh(self, step: Step) -> Tensor:
        losses = positive_losses(step, "go4align")
        return go4align_weights(self._moved(step, losses), losses, self.num_groups)

    def update(self, step: Step) -> None:
        moved = self._moved(step, step.require_losses("go4align"))
        assert self.log_shares is not None
        log_shares = self.log_shares.clone()
        log_shares[list(step.active)] = moved
        self.log_shares = log_shares.log_softmax(0)

    def _moved(self, step: Step, losses: Tensor) -> Tensor:
        """Return the logarithms of the active tasks' shares once they have seen these losses."""
        if self.log_shares is None:
            self.log_shares = losses.new_zeros(len(step.tasks))
        self.log_shares = self.log_shares.to(losses)
        return self.log_shares[list(step.active)] - self.step_size * losses
