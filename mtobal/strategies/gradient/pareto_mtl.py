"""Pareto MTL: one solution in each of several sectors of the loss space."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mtobal.errors import UsageError
from mtobal.solvers import min_norm
from mtobal.strategies.base import Aggregation, Step
from mtobal.strategies.card import Card
from mtobal.strategies.per_task import PerTask, check_per_task, per_task
from mtobal.strategies.registry import register


def pareto_mtl_weights(
    gramian: Tensor, losses: Tensor, preferences: Tensor, index: int, *, feasibility_only: bool = False
) -> Tensor:
    r"""Return the task weights of the shortest direction that also leads back into the sector of a preference.

    The losses lie in the sector of ``p_i`` if it is the nearest of the preference vectors. The constraints
    ``(p_j - p_i) . L <= 0`` that are violated are active: their gradients ``J^T (p_j - p_i)`` join the rows of J,
    and the direction is the min-norm point of the convex hull of all of them.

    Parameters
    ----------
    gramian : Tensor of shape (K, K)
        ``G = J J^T``, float64 on the CPU.
    losses : Tensor of shape (K,)
        The losses L.
    preferences : Tensor of shape (M, K)
        Preference vectors p_j of unit length.
    index : int
        Which of them is followed.
    feasibility_only : bool
        Whether only the active constraints count, as in the phase that first brings the losses into the sector.
        Without an active one the direction is the usual one.

    Returns
    -------
    Tensor of shape (K,)
        ``alpha + sum_j beta_j (p_j - p_i)`` with the simplex weights (alpha, beta). They may be negative.

    See Also
    --------
    mtobal.solvers.min_norm : the solver, and its answer for degenerate inputs.

    References
    ----------
    Lin, Zhen, Li, Zhang and Kwong, Pareto Multi-Task Learning, NeurIPS 2019, arXiv:1912.12854, equations 11, 13.

    Examples
    --------
    >>> import torch
    >>> corners = torch.eye(2, dtype=torch.float64)
    >>> losses = torch.tensor([1.0, 3.0])
    >>> pareto_mtl_weights(torch.eye(2, dtype=torch.float64), losses, corners, 1)  # nearest to its preference
    tensor([0.5000, 0.5000], dtype=torch.float64)
    >>> pareto_mtl_weights(torch.eye(2, dtype=torch.float64), losses, corners, 0)
    tensor([0.2000, 0.4000], dtype=torch.float64)
    """
    active = (preferences - preferences[index])[_violations(preferences, index, losses) > 0].numpy()
    rows = active if feasibility_only and len(active) else np.vstack([np.eye(len(gramian)), active])
    return torch.from_numpy(min_norm(rows @ gramian.numpy() @ rows.T) @ rows)


def _violations(preferences: Tensor, index: int, losses: Tensor) -> Tensor:
    """Return how much nearer the losses are to each preference than to the one that is followed."""
    return (preferences - preferences[index]) @ losses.to("cpu", torch.float64)


@register("pareto_mtl")
class ParetoMTL(Aggregation):
    """Follow the shortest common descent direction, kept in the sector of one of several preference vectors.

    Parameters
    ----------
    preferences : sequence of mappings from task to float, or of sequences of floats, optional
        The preference vectors that divide the loss space into sectors; only their directions count.
        By default one for each task, with the other tasks at zero, and last the one that is equal in all tasks.
    index : int
        Which preference this training follows; -1 is the last. A set of trade-offs takes one training for each.
    initial_steps : int
        For at most so many steps, and until the losses lie in the sector for the first time, only lead there.
    **common
        ``scale`` and ``heads``, as in every aggregation. ``scale=sum`` scales the absolute values of the weights
        to a sum of K, as the official training code does.
    """

    card = Card(
        summary="Follows the shortest common descent direction, kept in the sector of one of several preferences.",
        when="To train several networks that cover different trade-offs. Its weights may be negative, and every "
        "preference costs one training.",
        paper="Lin et al., Pareto Multi-Task Learning, NeurIPS 2019, arXiv:1912.12854.",
        defaults_source="The paper's direction; the official code takes its preferences on the quarter circle "
        "between two tasks and gives the first two epochs to the initial phase, here left out.",
        state="the number of initial steps that are left",
        scale="mean",
        heads="weighted",
    )

    def __init__(
        self,
        preferences: Sequence[PerTask] | None = None,
        index: int = -1,
        initial_steps: int = 0,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        for preference in preferences or ():
            check_per_task(preference, "a preference of pareto_mtl", minimum=0.0)
        if initial_steps < 0:
            raise UsageError(f"pareto_mtl: initial_steps must not be negative, got {initial_steps}.")
        self.preferences = preferences
        self.index = index
        self.initial_steps_left: Tensor
        self.register_buffer("initial_steps_left", torch.tensor(initial_steps))

    def solve(self, gramian: Tensor, step: Step) -> Tensor:
        losses, preferences = step.require_losses("pareto_mtl"), self._preferences(step)
        return pareto_mtl_weights(
            gramian, losses, preferences, self.index, feasibility_only=bool(self.initial_steps_left > 0)
        )

    def weights(self, gramian: Tensor, step: Step) -> Tensor:
        weights = self.solve(gramian, step)
        total = weights.abs().sum()
        return weights * (len(weights) / total) if self.scale == "sum" and total > 0 else weights

    def update(self, step: Step) -> None:
        if self.initial_steps_left > 0:
            violations = _violations(self._preferences(step), self.index, step.require_losses("pareto_mtl"))
            self.initial_steps_left = self.initial_steps_left - 1 if (violations > 0).any() else torch.tensor(0)

    def _preferences(self, step: Step) -> Tensor:
        """Return the preference vectors in unit length, and of these the entries of the active tasks.

        A task that sits the step out has loss and gradient zero, which takes its entry out of every product.
        """
        size = len(step.tasks)
        if self.preferences is None:
            vectors = torch.cat([torch.eye(size), torch.ones(1, size)]).double()
        else:
            everyone, like = replace(step, active=tuple(range(size))), torch.empty(size, dtype=torch.float64)
            vectors = torch.stack(
                [per_task(each, 0.0, everyone, like, "a preference of pareto_mtl") for each in self.preferences]
            )
        if not -len(vectors) <= self.index < len(vectors):
            raise UsageError(f"pareto_mtl: index={self.index} is none of the {len(vectors)} preferences.")
        unit: Tensor = vectors / vectors.norm(dim=1, keepdim=True)
        return unit[:, list(step.active)]
