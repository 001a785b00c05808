"""Stochastic direction-oriented multi-objective gradient."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from mtobal.errors import UsageError
from mtobal.solvers import simplex_projection
from mtobal.strategies.base import Aggregation, Step
from mtobal.strategies.card import Card
from mtobal.strategies.memory import simplex_share, with_share
from mtobal.strategies.registry import register


def sdmgrad_weights(
    weights: Tensor,
    cross_gramian: Tensor,
    lamda: float = 0.3,
    lr: float = 10.0,
    momentum: float = 0.5,
    iterations: int = 20,
    epsilon: float = 0.0,
) -> Tensor:
    r"""Descend from the weights to the min-norm point of the gradients with a pull to their mean.

    Projected gradient steps with momentum on ``w^T A w / 2 + lamda w^T A 1 / K``, where A is the cross-Gramian
    divided by ``(mean_k sqrt(max(A_kk, 0)))^2 + epsilon``.

    Parameters
    ----------
    weights : Tensor of shape (K,)
        Simplex weights to start from, float64 on the CPU.
    cross_gramian : Tensor of shape (K, K)
        ``J_1 J_2^T`` of two independent samples, or the Gramian of one. float64 on the CPU.
    lamda : float
        Strength of the pull to the mean gradient.
    lr, momentum, iterations : float, float, int
        Of the descent.
    epsilon : float
        Zero makes the descent the same for gradients of any scale; LibMTL and TorchJD take 1e-8.

    Returns
    -------
    Tensor of shape (K,)
        The start, where no task has a positive ``A_kk``.

    References
    ----------
    Xiao, Ban and Ji, Direction-oriented Multi-objective Learning: Simple and Provable Stochastic Algorithms,
    NeurIPS 2023, arXiv:2305.18409, algorithm 1.

    Examples
    --------
    >>> import torch
    >>> gramian = torch.diag(torch.tensor([4.0, 1.0])).double()
    >>> sdmgrad_weights(torch.tensor([0.5, 0.5]).double(), gramian, lr=0.1)
    tensor([0.1094, 0.8906], dtype=torch.float64)
    """
    matrix = cross_gramian.numpy()
    found = weights.numpy().copy()
    scale = np.sqrt(np.maximum(matrix.diagonal(), 0.0)).mean()
    if not scale**2 > 0:
        return torch.from_numpy(found)
    matrix = matrix / (scale**2 + epsilon)
    pull = lamda * matrix.mean(1)
    velocity = np.zeros_like(found)
    for _ in range(iterations):
        velocity = momentum * velocity + matrix @ found + pull
        found = simplex_projection(found - lr * velocity)
    return torch.from_numpy(found)


def directed_weights(weights: Tensor, lamda: float) -> Tensor:
    """Return the weights of ``(sum_k w_k g_k + lamda mean_k g_k) / (1 + lamda)``."""
    return (weights + lamda / len(weights)) / (1 + lamda)


@register("sdmgrad")
class SDMGrad(Aggregation):
    """Follow the min-norm point of the gradients with a pull to their mean, found by a few steps of descent.

    Each training step has one batch, which stands for all samples of the method, as in its official code.

    Parameters
    ----------
    lamda : float
        Strength of the pull to the mean gradient.
    lr, momentum, iterations : float, float, int
        Of the descent, which starts from the weights of the step before.
    **common
        ``scale`` and ``heads``, as in every aggregation.
    """

    card = Card(
        summary="Follows the min-norm point of the gradients with a pull to their mean, by a little descent.",
        when="Between mgda and equal weights. Its theory asks for three independent batches a step; here one "
        "serves for all, as in the official code, which repeats one by mistake.",
        paper="Xiao et al., Direction-oriented Multi-objective Learning: Simple and Provable Stochastic "
        "Algorithms, NeurIPS 2023, arXiv:2305.18409.",
        defaults_source="The official experiments: a pull of 0.3, 20 steps with rate 10 and momentum 0.5; heads "
        "keep their own gradient. They also multiply by the number of tasks: scale='sum' here.",
        state="K weights",
        scale="mean",
        heads="raw",
    )

    task_weights: Tensor | None

    def __init__(
        self,
        lamda: float = 0.3,
        lr: float = 10.0,
        momentum: float = 0.5,
        iterations: int = 20,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        if lamda < 0:
            raise UsageError(f"sdmgrad: lamda must not be negative, not {lamda}.")
        if lr <= 0 or not 0 <= momentum < 1:
            raise UsageError(f"sdmgrad: lr must be positive and momentum in [0, 1), not {lr} and {momentum}.")
        if iterations < 1:
            raise UsageError(f"sdmgrad: iterations must be at least 1, not {iterations}.")
        self.lamda = lamda
        self.lr = lr
        self.momentum = momentum
        self.iterations = iterations
        self.register_buffer("task_weights", None)

    def solve(self, gramian: Tensor, step: Step) -> Tensor:
        start = simplex_share(self.task_weights, step)
        share = sdmgrad_weights(start, gramian, self.lamda, self.lr, self.momentum, self.iterations)
        self.task_weights = with_share(self.task_weights, share, step)
        return directed_weights(share, self.lamda)
