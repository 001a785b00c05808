"""Conflict-averse gradient descent: near the mean gradient, best for the task that gains least."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor

from mtobal.errors import UsageError
from mtobal.solvers import conflict_averse
from mtobal.strategies.base import Aggregation, Step
from mtobal.strategies.card import Card
from mtobal.strategies.registry import register


def cagrad_weights(gramian: Tensor, c: float = 0.5, rescale: Literal[0, 1, 2] = 1) -> Tensor:
    r"""Return the weights of ``max_d min_k g_k . d`` within ``||d - g_0|| <= c ||g_0||`` of the mean gradient.

    The weights are ``1/K + tau w``: w on the simplex minimises ``g_w . g_0 + c ||g_0|| ||g_w||``, and
    ``tau = c ||g_0|| / ||g_w||``.

    Parameters
    ----------
    gramian : Tensor of shape (K, K)
        ``G = J J^T``, float64 on the CPU.
    c : float
        Not negative. Zero gives the mean gradient; as c grows, the direction turns to that of MGDA.
    rescale : {0, 1, 2}
        Divide the direction by one, by ``1 + c**2`` or by ``1 + c``.

    Returns
    -------
    Tensor of shape (K,)
        Where the dual is solved by ``g_w = 0``, as with a zero row and often at a Pareto-stationary point, every
        d in the ball with ``J d >= 0`` is a solution: then the one nearest to the mean gradient.

    See Also
    --------
    mtobal.solvers.conflict_averse : the solver.

    References
    ----------
    Liu, Liu, Jin, Stone and Liu, Conflict-Averse Gradient Descent for Multi-task Learning, NeurIPS 2021,
    arXiv:2110.14048, algorithm 1.

    Examples
    --------
    >>> import torch
    >>> cagrad_weights(torch.tensor([[4.0, 0.0], [0.0, 9.0]], dtype=torch.float64), rescale=0)
    tensor([0.9507, 0.5000], dtype=torch.float64)
    """
    multipliers = conflict_averse(gramian.numpy(), c)
    divisor = (1.0, 1.0 + c**2, 1.0 + c)[rescale]
    return torch.from_numpy((1.0 / len(multipliers) + multipliers) / divisor)


@register("cagrad")
class CAGrad(Aggregation):
    """Stay near the mean gradient, and within that do the best for the task that gains least.

    Parameters
    ----------
    c : float
        How far the direction may be from the mean gradient, relative to its norm. From one on, no task gets
        worse.
    rescale : {0, 1, 2}
        Divide the direction by one, by ``1 + c**2`` or by ``1 + c``, to keep its length near that of the mean.
    **common
        ``scale`` and ``heads``, as in every aggregation. ``scale="sum"`` is the factor K of the official code.
    """

    card = Card(
        summary="Stays near the mean gradient, and within that does the best for the task that gains least.",
        when="Conflicting tasks whose average still is the aim: it converges to a minimum of the mean loss for c "
        "below one.",
        paper="Liu et al., Conflict-Averse Gradient Descent for Multi-task Learning, NeurIPS 2021, "
        "arXiv:2110.14048.",
        defaults_source="c and rescale of the official code, whose factor K is scale='sum'; heads with their own "
        "gradient, as there.",
        scale="mean",
        heads="raw",
    )

    def __init__(self, c: float = 0.5, rescale: Literal[0, 1, 2] = 1, **common: Any) -> None:
        super().__init__(**common)
        if not 0 <= c < math.inf:
            raise UsageError(f"cagrad: c must be finite and not negative, not {c}.")
        self.c = c
        self.rescale: Literal[0, 1, 2] = rescale

    def solve(self, gramian: Tensor, step: Step) -> Tensor:
        return cagrad_weights(gramian, self.c, self.rescale)
