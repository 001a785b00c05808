"""Projecting conflicting gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from mtobal.strategies.base import Aggregation, Step
from mtobal.strategies.card import Card
from mtobal.strategies.gradient.visits import draw_visits
from mtobal.strategies.registry import register


def pcgrad_weights(gramian: Tensor, orders: Tensor) -> Tensor:
    r"""Return the weights of the sum of the projected gradients.

    Task i starts from ``g = g_i`` and visits the other tasks j in its own order; where ``g . g_j < 0`` it
    becomes ``g - (g . g_j / ||g_j||^2) g_j``, with the original ``g_j``. The direction is the sum over i.
    Every ``g`` stays in the span of the rows, so all of it happens on coefficients and the Gramian.

    Parameters
    ----------
    gramian : Tensor of shape (K, K)
        ``G = J J^T``, float64 on the CPU.
    orders : Tensor of shape (K, K - 1), integers
        Row i lists the tasks that task i visits, in order.

    Returns
    -------
    Tensor of shape (K,)
        Without a conflicting pair, all ones. A zero row conflicts with none.

    References
    ----------
    Yu, Kumar, Gupta, Levine, Hausman and Finn, Gradient Surgery for Multi-Task Learning, NeurIPS 2020,
    arXiv:2001.06782, algorithm 1.

    Examples
    --------
    >>> import torch
    >>> gramian = torch.tensor([[1.0, -1.0], [-1.0, 4.0]], dtype=torch.float64)
    >>> pcgrad_weights(gramian, torch.tensor([[1], [0]]))
    tensor([2.0000, 1.2500], dtype=torch.float64)
    """
    rows, size = gramian.numpy(), len(gramian)
    squared_norms = rows.diagonal()
    # A zero row has product zero with everything, whatever it is divided by.
    shares = rows / np.where(squared_norms > np.finfo(np.float64).tiny, squared_norms, 1.0)[:, None]
    visits = orders.numpy().T
    positions = visits + size * np.arange(size)
    coefficients = np.eye(size)  # of the current gradient of each task
    flat = coefficients.reshape(-1)
    for visited, position in zip(visits, positions, strict=True):
        flat[position] = -np.minimum(np.einsum("ij,ij->i", coefficients, shares[visited]), 0.0)
    return torch.from_numpy(coefficients.sum(0))


@register("pcgrad")
class PCGrad(Aggregation):
    """Remove from each gradient the part that points against another, and sum.

    Parameters
    ----------
    seed : int
        Seed of the orders in which each task visits the others, drawn anew at every step.
    **common
        ``scale`` and ``heads``, as in every aggregation.
    """

    card = Card(
        summary="Removes from each gradient the part that points against another, and sums.",
        when="A few tasks that conflict now and then; a mild change to the plain sum. With more than two tasks "
        "the result depends on the order of the visits, which is random.",
        paper="Yu et al., Gradient Surgery for Multi-Task Learning, NeurIPS 2020, arXiv:2001.06782.",
        defaults_source="The sum over tasks as in the official code; heads keep their own gradient.",
        state="a random generator",
        scale="sum",
        heads="raw",
    )

    def __init__(self, seed: int = 0, **common: Any) -> None:
        super().__init__(**common)
        self.generator = torch.Generator().manual_seed(seed)

    def solve(self, gramian: Tensor, step: Step) -> Tensor:
        return pcgrad_weights(gramian, draw_visits(len(gramian), self.generator))
