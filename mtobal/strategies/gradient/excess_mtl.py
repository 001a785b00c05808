"""Excess-risk weighting: more weight for the tasks that are further from their optimum."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mtobal.errors import UsageError
from mtobal.ops import Jacobian
from mtobal.ops.columns import column_slices
from mtobal.strategies.base import Direction, JacobianAggregation, Step
from mtobal.strategies.card import Card
from mtobal.strategies.memory import RowMemory
from mtobal.strategies.registry import register

EPSILON = 1e-7


def excess_risks(gradients: Tensor, squares: Tensor) -> Tensor:
    r"""Estimate how far each task is from its optimum, ``sum_j g_kj^2 / sqrt(A_kj + 1e-7)``.

    The root of the accumulated squares A stands for the curvature of the loss.

    Parameters
    ----------
    gradients, squares : Tensor of shape (K, n)
        The gradients, and the sums of their squares over all steps so far, this one included.

    Returns
    -------
    Tensor of shape (K,)
        float64.
    """
    risks = gradients.new_zeros(len(gradients), dtype=torch.float64)
    for columns in column_slices(gradients):
        part = gradients[:, columns]
        risks += (squares[:, columns] + EPSILON).rsqrt_().mul_(part).mul_(part).sum(1)
    return risks


def excess_log_weights(log_weights: Tensor, ratios: Tensor, step_size: float) -> Tensor:
    """Return the logarithms of ``w_k exp(step_size * r_k)``, brought to the sum that the weights had.

    Parameters
    ----------
    log_weights, ratios : Tensor of shape (K,)
        The logarithms of the weights, and the excess risks relative to those at the start.
    step_size : float

    Returns
    -------
    Tensor of shape (K,)

    References
    ----------
    He, Zhou, Zhang and Zhang, Robust Multi-Task Learning with Excess Risks, ICML 2024, arXiv:2402.02009.

    Examples
    --------
    >>> import torch
    >>> excess_log_weights(torch.zeros(2), torch.tensor([0.5, 0.1]), step_size=1.0).exp()
    tensor([1.1974, 0.8026])
    """
    return (log_weights + step_size * ratios).log_softmax(0) + log_weights.logsumexp(0)


@register("excess_mtl")
class ExcessMTL(JacobianAggregation):
    """Let the weight of a task grow with its excess risk, an estimate of what its loss can still lose.

    Parameters
    ----------
    step_size : float
        How fast the weights move.
    **common
        ``scale`` and ``heads``, as in every aggregation.
    """

    card = Card(
        summary="Lets the weight of a task grow with an estimate of what its loss can still lose.",
        when="Tasks with label noise, whose loss stays high though nothing is left to learn: it is the worst task "
        "that counts, but by excess rather than by loss. It keeps as much memory as K copies of the shared "
        "parameters.",
        paper="He et al., Robust Multi-Task Learning with Excess Risks, ICML 2024, arXiv:2402.02009.",
        defaults_source="The official code: a step of 0.01, weights that add up to the number of tasks, and a "
        "first step that only sets the excess to compare with.",
        state="sums of squared gradients of all tasks (K times the shared parameters), first excess and weights",
        scale="sum",
        heads="weighted",
        degree=None,
    )

    first: Tensor | None
    log_weights: Tensor | None

    def __init__(self, step_size: float = 0.01, **common: Any) -> None:
        super().__init__(**common)
        if step_size <= 0:
            raise UsageError(f"excess_mtl: the step size must be positive, not {step_size}.")
        self.step_size = step_size
        self.squares = RowMemory("excess_mtl")
        self.register_buffer("first", None)  # zero for a task that has had no gradient yet
        self.register_buffer("log_weights", None)

    def direct(self, jacobian: Jacobian, step: Step) -> Direction:
        size = len(step.tasks)
        if self.first is None or self.log_weights is None:
            self.first, self.log_weights = torch.zeros(2, size, dtype=torch.float64)
        if len(self.log_weights) != size:
            raise UsageError(f"excess_mtl holds {len(self.log_weights)} tasks, but this step has {size}.")
        squares = self.squares.update(jacobian, step, lambda rows, gradients: rows.addcmul_(gradients, gradients))
        risks = torch.stack(
            [
                excess_risks(gradients, rows).to(jacobian.blocks[0].device)
                for gradients, rows in zip(jacobian.blocks, squares, strict=True)
            ]
        )
        excess = torch.zeros(size, dtype=torch.float64)
        excess[list(step.active)] = risks.sum(0).cpu()
        started = self.first > 0
        ratios = torch.where(started, excess / self.first.where(started, 1.0), 0.0)
        self.log_weights = excess_log_weights(self.log_weights, ratios, self.step_size)
        self.first = self.first.where(started, excess)
        weights = self.log_weights[list(step.active)].exp()
        return Direction(jacobian.combine(weights), weights)
