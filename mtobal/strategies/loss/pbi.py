"""Penalty-based boundary intersection."""

from __future__ import annotations

import torch
from torch import Tensor

from mtobal.errors import UsageError
from mtobal.strategies.base import LossWeighting, Step
from mtobal.strategies.card import Card
from mtobal.strategies.per_task import PerTask, check_per_task, per_task
from mtobal.strategies.registry import register


def boundary_intersection_weights(losses: Tensor, preference: Tensor, ideal: Tensor, theta: float) -> Tensor:
    r"""Differentiate ``d1 + theta d2``, the distances along and away from a preference.

    With ``u = r / |r|``: ``d1 = (L - z) . u``, ``d2 = |e|`` and ``e = L - z - d1 u``. So
    ``w = u + theta e / |e|``. On the line itself, where ``e = 0``, the second term is left out.

    Parameters
    ----------
    losses, preference, ideal : Tensor of shape (K,)
        L, r (not negative) and z.
    theta : float

    Returns
    -------
    Tensor of shape (K,)
        A weight can be negative: that of a task whose loss is below its share.

    References
    ----------
    Zhang and Li, MOEA/D: A Multiobjective Evolutionary Algorithm Based on Decomposition, IEEE Transactions on
    Evolutionary Computation 11(6), 2007.

    Examples
    --------
    >>> import torch
    >>> boundary_intersection_weights(torch.tensor([3.0, 0.0]), torch.tensor([1.0, 0.0]), torch.zeros(2), 5.0)
    tensor([1., 0.])
    """
    wanted: Tensor = preference / preference.norm().clamp(min=torch.finfo(losses.dtype).tiny)
    shifted = losses - ideal
    away = shifted - (shifted @ wanted) * wanted
    distance: Tensor = away.norm()
    # What rounding leaves of a point on the line has no direction.
    off = distance > 8 * torch.finfo(losses.dtype).eps * shifted.norm()
    return wanted + (away / distance).where(off, 0.0) * theta


@register("pbi")
class PBI(LossWeighting):
    """Minimise the losses along a preference, and their distance from it.

    Parameters
    ----------
    preference : mapping or sequence of floats, optional
        The losses, less the ideal ones, should stand in this proportion; by default equal.
    ideal : mapping or sequence of floats, optional
        The best losses, by default zero.
    theta : float
        Weight of the distance from the preference.
    """

    card = Card(
        summary="Minimises the losses along a preference, and their distance from it.",
        when="To reach a wanted proportion of losses, also where the front is not convex. While they are out of "
        "proportion, the tasks whose losses are too low get negative weights.",
        paper="Zhang and Li, MOEA/D: A Multiobjective Evolutionary Algorithm Based on Decomposition, IEEE "
        "Transactions on Evolutionary Computation, 2007.",
        defaults_source="theta = 5 as in the paper.",
        scale="own",
        heads="weighted",
        raises_losses=True,
    )

    def __init__(
        self, preference: PerTask | None = None, ideal: PerTask | None = None, theta: float = 5.0
    ) -> None:
        super().__init__()
        check_per_task(preference, "pbi: preference", minimum=0.0)
        check_per_task(ideal, "pbi: ideal")
        if theta < 0:
            raise UsageError(f"pbi: theta must not be negative, but is {theta}.")
        self.preference = preference
        self.ideal = ideal
        self.theta = theta

    def weigh(self, step: Step) -> Tensor:
        losses = step.require_losses("pbi")
        preference = per_task(self.preference, 1.0, step, losses, "pbi: preference")
        ideal = per_task(self.ideal, 0.0, step, losses, "pbi: ideal")
        return boundary_intersection_weights(losses, preference, ideal, self.theta)
