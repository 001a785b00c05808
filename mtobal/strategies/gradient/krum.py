"""Krum: the gradients that lie closest to their neighbours."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from mtobal.errors import UsageError
from mtobal.strategies.base import Aggregation, Step
from mtobal.strategies.card import Card
from mtobal.strategies.registry import register

Distance = Literal["squared", "plain"]


def krum_weights(
    gramian: Tensor, n_byzantine: int = 0, n_selected: int = 1, distance: Distance = "squared"
) -> Tensor:
    r"""Return the weights of the mean of the `n_selected` gradients that lie closest to their neighbours.

    The score of a row is the sum of its ``K - f - 2`` smallest distances to the others, with
    ``f = n_byzantine``; the lowest scores are selected.

    Parameters
    ----------
    gramian : Tensor of shape (K, K)
        ``G = J J^T``, float64 on the CPU: ``||g_i - g_j||^2 = G_ii + G_jj - 2 G_ij``.
    n_byzantine : int
        How many rows f may be arbitrary.
    n_selected : int
        How many rows are averaged (Multi-Krum).
    distance : {"squared", "plain"}
        What is summed: the squared distances of the paper, or the distances.

    Returns
    -------
    Tensor of shape (K,)
        They add up to one. Rows with equal scores that compete for the last places share them equally, so that
        the order of the tasks does not matter. With fewer than ``f + 3`` rows there is no neighbour to
        compare with, and all rows are averaged.

    References
    ----------
    Blanchard, El Mhamdi, Guerraoui and Stainer, Machine Learning with Adversaries: Byzantine Tolerant Gradient
    Descent, NeurIPS 2017, arXiv:1703.02757, section 4.

    Examples
    --------
    >>> import torch
    >>> rows = torch.tensor([[1.0], [1.1], [1.3], [9.0]], dtype=torch.float64)
    >>> krum_weights(rows @ rows.T)
    tensor([0., 1., 0., 0.], dtype=torch.float64)
    """
    rows = gramian.numpy()
    size = len(rows)
    n_neighbours = size - n_byzantine - 2
    if n_neighbours < 1 or n_selected >= size:
        return torch.full((size,), 1.0 / size, dtype=torch.float64)
    squared_norms = rows.diagonal()
    distances = np.maximum(squared_norms + squared_norms[:, None] - 2 * rows, 0.0)
    if distance == "plain":
        distances = np.sqrt(distances)
    distances.flat[:: size + 1] = np.inf  # a row is no neighbour of its own
    distances.sort(axis=1)
    scores = distances[:, :n_neighbours].sum(1)
    last = sorted(scores.tolist())[n_selected - 1]
    chosen = scores < last * (1 - 1e-12)
    tied = scores <= last * (1 + 1e-12)
    tied ^= chosen
    n_chosen = np.count_nonzero(chosen)
    share = (n_selected - n_chosen) / np.count_nonzero(tied)
    return torch.from_numpy((chosen + share * tied) / n_selected)


@register("krum")
class Krum(Aggregation):
    """Follow the mean of the gradients that lie closest to their neighbours, and ignore the others.

    Parameters
    ----------
    n_byzantine : int
        How many gradients may be arbitrary; at least three more tasks are needed.
    n_selected : int
        How many gradients are averaged.
    distance : {"squared", "plain"}
        Whether the score of a gradient adds up squared distances, as in the paper, or plain ones.
    **common
        ``scale`` and ``heads``, as in every aggregation.
    """

    card = Card(
        summary="Follows the mean of the gradients that lie closest to their neighbours, and ignores the others.",
        when="Many tasks of which a few may send broken gradients. It drops tasks altogether, so it is no method "
        "for a handful of tasks that all matter.",
        paper="Blanchard et al., Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent, "
        "NeurIPS 2017, arXiv:1703.02757.",
        defaults_source="Squared distances and one selected gradient as in the paper, which has no default number "
        "of arbitrary gradients: none is expected.",
        scale="mean",
        heads="raw",
    )

    def __init__(
        self, n_byzantine: int = 0, n_selected: int = 1, distance: Distance = "squared", **common: Any
    ) -> None:
        super().__init__(**common)
        if n_byzantine < 0:
            raise UsageError(f"krum: n_byzantine must not be negative, got {n_byzantine}.")
        if n_selected < 1:
            raise UsageError(f"krum: n_selected must be at least 1, got {n_selected}.")
        self.n_byzantine = n_byzantine
        self.n_selected = n_selected
        self.distance: Distance = distance

    def solve(self, gramian: Tensor, step: Step) -> Tensor:
        if self.n_byzantine and len(step.tasks) < self.n_byzantine + 3:
            raise UsageError(
                f"krum(n_byzantine={self.n_byzantine}) needs at least {self.n_byzantine + 3} tasks, "
                f"there are {len(step.tasks)}."
            )
        return krum_weights(gramian, self.n_byzantine, self.n_selected, self.distance)
