"""Multi-objective gradient correction: gradients that are tracked over the steps."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from mtobal.errors import UsageError
from mtobal.ops import Jacobian, row_norms
from mtobal.solvers import simplex_projection
from mtobal.strategies.base import Direction, JacobianAggregation, Step
from mtobal.strategies.card import Card
from mtobal.strategies.loss.positive import positive_losses
from mtobal.strategies.memory import RowMemory, simplex_share, with_share
from mtobal.strategies.registry import register

Form = Literal["paper", "softmax"]

EPSILON = 1e-8


def moco_weights(
    weights: Tensor, tracked_gramian: Tensor, gamma: float, rho: float = 0.0, form: Form = "paper"
) -> Tensor:
    r"""Take one step of the weights down ``|| sum_k w_k y_k ||^2 / 2 + rho ||w||^2 / 2``.

    Parameters
    ----------
    weights : Tensor of shape (K,)
        Simplex weights, float64 on the CPU.
    tracked_gramian : Tensor of shape (K, K)
        ``Y Y^T`` of the tracked gradients, float64 on the CPU.
    gamma : float
        Length of the step.
    rho : float
        Strength of the pull to equal weights.
    form : {"paper", "softmax"}
        Whether the result is projected on the simplex, or put through a softmax, which keeps it near equal
        weights.

    Returns
    -------
    Tensor of shape (K,)

    References
    ----------
    Fernando, Shen, Liu, Chaudhury, Murugesan and Chen, Mitigating Gradient Bias in Multi-objective Learning: A
    Provably Convergent Approach, ICLR 2023, arXiv:2210.12624, algorithm 1.

    Examples
    --------
    >>> import torch
    >>> moco_weights(torch.tensor([0.5, 0.5]).double(), torch.diag(torch.tensor([4.0, 1.0])).double(), gamma=0.1)
    tensor([0.4250, 0.5750], dtype=torch.float64)
    """
    moved = weights - gamma * (tracked_gramian @ weights + rho * weights)
    return moved.softmax(0) if form == "softmax" else torch.from_numpy(simplex_projection(moved.numpy()))


@register("moco")
class MoCo(JacobianAggregation):
    """Track the gradients by a moving average, and combine them by weights that descend to its min-norm point.

    At step t the tracked gradients move by ``beta / t^beta_sigma`` to the new ones, and the weights by
    ``gamma / t^gamma_sigma``.

    Parameters
    ----------
    beta, beta_sigma : float
        How fast the tracked gradients follow.
    gamma, gamma_sigma : float
        How fast the weights move.
    rho : float
        Strength of the pull of the weights to equal ones.
    form : {"paper", "softmax"}
        The paper tracks the gradients themselves, here from the first one of each task on, and projects the
        weights. ``softmax`` tracks gradients of the length of their loss, from zero, as LibMTL does.
    **common
        ``scale`` and ``heads``, as in every aggregation.
    """

    card = Card(
        summary="Tracks the gradients by a moving average, with weights that descend to its min-norm point.",
        when="Small batches, where the weights of mgda would follow the noise. It reacts late, and keeps as much "
        "memory as K copies of the shared parameters.",
        paper="Fernando et al., Mitigating Gradient Bias in Multi-objective Learning: A Provably Convergent "
        "Approach, ICLR 2023, arXiv:2210.12624.",
        defaults_source="The paper's update; 0.5 / sqrt(t), 0.1 / sqrt(t) and no pull as in LibMTL; heads keep "
        "their own gradient.",
        state="tracked gradients of all tasks (K times the shared parameters), the weights and the count of steps",
        scale="mean",
        heads="raw",
        degree=None,
    )

    steps: Tensor
    seen: Tensor | None
    task_weights: Tensor | None

    def __init__(
        self,
        beta: float = 0.5,
        beta_sigma: float = 0.5,
        gamma: float = 0.1,
        gamma_sigma: float = 0.5,
        rho: float = 0.0,
        form: Form = "paper",
        **common: Any,
    ) -> None:
        super().__init__(**common)
        if not 0 < beta <= 1:
            raise UsageError(f"moco: beta must be positive and at most 1, not {beta}.")
        if gamma <= 0:
            raise UsageError(f"moco: gamma must be positive, not {gamma}.")
        if min(beta_sigma, gamma_sigma, rho) < 0:
            raise UsageError("moco: beta_sigma, gamma_sigma and rho must not be negative.")
        self.beta, self.beta_sigma = beta, beta_sigma
        self.gamma, self.gamma_sigma = gamma, gamma_sigma
        self.rho = rho
        self.form: Form = form
        self.tracked = RowMemory("moco")
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("seen", None)
        self.register_buffer("task_weights", None)

    def direct(self, jacobian: Jacobian, step: Step) -> Direction:
        weights = simplex_share(self.task_weights, step)
        count = int(self.steps) + 1
        targets = self._scaled(jacobian, step) if self.form == "softmax" else jacobian
        follow = self._follow(step, self.beta / count**self.beta_sigma)

        def track(rows: Tensor, gradients: Tensor) -> Tensor:
            return rows.lerp_(gradients, follow.to(rows)[:, None])

        tracked = Jacobian(tuple(self.tracked.update(targets, step, track)), jacobian.names)
        gamma = self.gamma / count**self.gamma_sigma
        weights = moco_weights(weights, tracked.gramian(), gamma, self.rho, self.form)
        self.task_weights = with_share(self.task_weights, weights, step)
        return Direction(tracked.combine(weights))

    def update(self, step: Step) -> None:
        self.steps += 1

    def _follow(self, step: Step, beta: float) -> Tensor:
        """Return how far the tracked gradient of each active task moves: all the way at its first one."""
        active = list(step.active)
        follow = torch.full((len(active),), beta, dtype=torch.float64)
        if self.form == "paper":
            seen = torch.zeros(len(step.tasks), dtype=torch.bool) if self.seen is None else self.seen.clone()
            follow = follow.where(seen[active], 1.0)
            seen[active] = True
            self.seen = seen
        return follow

    def _scaled(self, jacobian: Jacobian, step: Step) -> Jacobian:
        """Bring each gradient to the length of its loss."""
        losses = positive_losses(step, "moco(form=softmax)").to("cpu", torch.float64)
        return jacobian.scaled(losses / (row_norms(jacobian.blocks) + EPSILON))
