"""COSMOS: a linear scalarisation that keeps the losses along a preference."""

from __future__ import annotations

import torch
from torch import Tensor

from mtobal.errors import UsageError
from mtobal.strategies.base import LossWeighting, Step
from mtobal.strategies.card import Card
from mtobal.strategies.per_task import PerTask, check_per_task, per_task
from mtobal.strategies.registry import register


def cosmos_weights(losses: Tensor, preference: Tensor, penalty: float) -> Tensor:
    r"""Differentiate ``r . L - penalty cos(r, L)``.

    ``w = r - penalty (r / |r| - cos(r, L) L / |L|) / |L|``. The second term is orthogonal to L: it turns the
    losses towards the preference and can make a weight negative. Where all losses are zero it is left out.

    Parameters
    ----------
    losses : Tensor of shape (K,)
    preference : Tensor of shape (K,)
        r, not negative.
    penalty : float

    Returns
    -------
    Tensor of shape (K,)

    References
    ----------
    Ruchte and Grabocka, Scalable Pareto Front Approximation for Deep Multi-Objective Learning, ICDM 2021,
    arXiv:2103.13392, equation 4.
    """
    norm: Tensor = losses.norm()
    unit = losses / norm
    wanted: Tensor = preference / preference.norm().clamp(min=torch.finfo(losses.dtype).tiny)
    turning = (wanted - (wanted @ unit) * unit) / norm
    return preference - turning.where(norm > 0, 0.0) * penalty


@register("cosmos")
class COSMOS(LossWeighting):
    """Minimise a linear scalarisation and the angle between the losses and a preference.

    Parameters
    ----------
    preference : mapping or sequence of floats, optional
        The losses should stand in this proportion; by default 1/K each.
    penalty : float
        Weight of the cosine.
    """

    card = Card(
        summary="Minimises a linear scalarisation and the angle between the losses and a preference.",
        when="To reach a wanted proportion of losses. A task whose loss is below its share can get a negative "
        "weight. The paper conditions the model on a preference drawn anew for each batch, which is left to the "
        "model.",
        paper="Ruchte and Grabocka, Scalable Pareto Front Approximation for Deep Multi-Objective Learning, ICDM "
        "2021, arXiv:2103.13392.",
        defaults_source="The paper takes penalties from 0.01 to 8 by data set; one lies between them.",
        scale="mean",
        heads="weighted",
        raises_losses=True,
    )

    def __init__(self, preference: PerTask | None = None, penalty: float = 1.0) -> None:
        super().__init__()
        check_per_task(preference, "cosmos: preference", minimum=0.0)
        if penalty < 0:
            raise UsageError(f"cosmos: the penalty must not be negative, but is {penalty}.")
        self.preference = preference
        self.penalty = penalty

    def weigh(self, step: Step) -> Tensor:
        losses = step.require_losses("cosmos")
        preference = per_task(self.preference, 1 / len(step.tasks), step, losses, "cosmos: preference")
        return cosmos_weights(losses, preference, self.penalty)
