"""Multi-objective gradient with double sampling."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mtobal.errors import UsageError
from mtobal.solvers import simplex_projection
from mtobal.strategies.base import Aggregation, Step
from mtobal.strategies.card import Card
from mtobal.strategies.memory import simplex_share, with_share
from mtobal.strategies.registry import register


def modo_weights(weights: Tensor, cross_gramian: Tensor, gamma: float, rho: float = 0.0) -> Tensor:
    r"""Take one projected step of the weights, ``w - gamma (J_1 J_2^T w + rho w)``.

    Parameters
    ----------
    weights : Tensor of shape (K,)
        Simplex weights, float64 on the CPU.
    cross_gramian : Tensor of shape (K, K)
        ``J_1 J_2^T`` of two independent samples, whose mean is the Gramian of the mean gradients; or the Gramian
        of one sample. float64 on the CPU.
    gamma : float
        Length of the step.
    rho : float
        Strength of the pull to equal weights.

    Returns
    -------
    Tensor of shape (K,)

    References
    ----------
    Chen, Fernando, Ying and Chen, Three-Way Trade-Off in Multi-Objective Learning: Optimization, Generalization
    and Conflict-Avoidance, NeurIPS 2023, arXiv:2305.20057, algorithm 1.

    Examples
    --------
    >>> import torch
    >>> modo_weights(torch.tensor([0.5, 0.5]).double(), torch.diag(torch.tensor([4.0, 1.0])).double(), gamma=0.1)
    tensor([0.4250, 0.5750], dtype=torch.float64)
    """
    moved = weights - gamma * (cross_gramian @ weights + rho * weights)
    return torch.from_numpy(simplex_projection(moved.numpy()))


@register("modo")
class MoDo(Aggregation):
    """Follow weights that take one projected gradient step to the min-norm point at each training step.

    Each training step has one batch, which stands for all samples of the method.

    Parameters
    ----------
    gamma : float
        Length of the step.
    rho : float
        Strength of the pull of the weights to equal ones.
    **common
        ``scale`` and ``heads``, as in every aggregation.
    """

    card = Card(
        summary="Follows weights that take one projected gradient step to the min-norm point at each step.",
        when="As mgda, but slower weights that follow the noise of a batch less; a small gamma keeps them near "
        "equal. Its theory asks for independent batches for the weights and the direction; here one batch serves "
        "for both.",
        paper="Chen et al., Three-Way Trade-Off in Multi-Objective Learning: Optimization, Generalization and "
        "Conflict-Avoidance, NeurIPS 2023, arXiv:2305.20057.",
        defaults_source="gamma 0.001 and rho 0.1 as in LibMTL, where heads keep their own gradient.",
        state="K weights",
        scale="mean",
        heads="raw",
        degree=None,
    )

    task_weights: Tensor | None

    def __init__(self, gamma: float = 1e-3, rho: float = 0.1, **common: Any) -> None:
        super().__init__(**common)
        if gamma <= 0:
            raise UsageError(f"modo: gamma must be positive, not {gamma}.")
        if rho < 0:
            raise UsageError(f"modo: rho must not be negative, not {rho}.")
        self.gamma = gamma
        self.rho = rho
        self.register_buffer("task_weights", None)

    def solve(self, gramian: Tensor, step: Step) -> Tensor:
        share = modo_weights(simplex_share(self.task_weights, step), gramian, self.gamma, self.rho)
        self.task_weights = with_share(self.task_weights, share, step)
        return share
