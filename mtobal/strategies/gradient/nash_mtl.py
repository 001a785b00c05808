"""Multi-task learning as a bargaining game."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mtobal.errors import UsageError
from mtobal.solvers import equilibrium
from mtobal.strategies.base import Step
from mtobal.strategies.card import Card
from mtobal.strategies.gradient.clipping import ClippedAggregation
from mtobal.strategies.registry import register


def nash_mtl_weights(gramian: Tensor) -> Tensor:
    r"""Return the weights of the Nash bargaining solution, ``(G a)_k = 1 / a_k``.

    The direction ``J^T a`` maximises the product of the tasks' gains ``g_k . d`` among all d of its norm, which
    is the root of K. It does not change when a gradient is scaled.

    Parameters
    ----------
    gramian : Tensor of shape (K, K)
        ``G = J J^T``, float64 on the CPU.

    Returns
    -------
    Tensor of shape (K,)
        Positive. Where a row is zero or the origin is in the hull of the rows, no solution exists: then the
        simplex weights of the min-norm point, which is zero.

    See Also
    --------
    mtobal.solvers.equilibrium : the solver.

    References
    ----------
    Navon, Shamsian, Achituve, Maron, Kawaguchi, Chechik and Fetaya, Multi-Task Learning as a Bargaining Game,
    ICML 2022, arXiv:2202.01017, claim 3.1.

    Examples
    --------
    >>> import torch
    >>> nash_mtl_weights(torch.tensor([[4.0, 0.0], [0.0, 9.0]], dtype=torch.float64))
    tensor([0.5000, 0.3333], dtype=torch.float64)
    """
    return torch.from_numpy(equilibrium(gramian.numpy()))


@register("nash_mtl")
class NashMTL(ClippedAggregation):
    """Follow the Nash bargaining solution, in which no gradient counts more for being longer.

    Parameters
    ----------
    max_norm : float
        The largest norm of the direction on the shared parameters, which is the root of the number of tasks
        before clipping; so up to that, it sets the length of every step. Zero means no clipping.
    update_weights_every : int
        Solve at every so many steps, and reuse the weights in between. A task without weights from the last
        time is a reason to solve at once.
    **common
        ``scale`` and ``heads``, as in every aggregation. Weighted heads get the weights before clipping.
    """

    card = Card(
        summary="Follows the Nash bargaining solution, in which no gradient counts more for being longer.",
        when="Tasks whose gradients differ widely in length. Every step has the same length, so the learning rate "
        "alone says how far to go; no progress at all while the gradient of a task is zero.",
        paper="Navon et al., Multi-Task Learning as a Bargaining Game, ICML 2022, arXiv:2202.01017.",
        defaults_source="The official code: clipped to a norm of one on the shared parameters, heads weighted "
        "before that.",
        state="the last weights and the number of steps",
        scale="own",
        heads="weighted",
        degree=0.0,
        non_conflicting=True,
    )

    steps: Tensor
    last: Tensor | None

    def __init__(self, max_norm: float = 1.0, update_weights_every: int = 1, **common: Any) -> None:
        super().__init__(max_norm, **common)
        if update_weights_every < 1:
            raise UsageError(f"nash_mtl: update_weights_every must be at least 1, not {update_weights_every}.")
        self.update_weights_every = update_weights_every
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("last", None)  # of every task, zero where it has none

    def solve_unclipped(self, gramian: Tensor, step: Step) -> Tensor:
        if self.last is not None and int(self.steps) % self.update_weights_every:
            if len(self.last) != len(step.tasks):
                raise UsageError(f"nash_mtl holds {len(self.last)} tasks, but this step has {len(step.tasks)}.")
            reused = self.last.to("cpu")[list(step.active)]
            if reused.all():
                return reused
        return nash_mtl_weights(gramian)

    def update(self, step: Step) -> None:
        self.steps += 1
        if self.update_weights_every > 1:
            self.last = torch.zeros(len(step.tasks), dtype=torch.float64) if self.last is None else self.last
            self.last[list(step.active)] = self.unclipped.to(self.last.device)
