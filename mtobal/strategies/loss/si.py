"""Scale-invariant weighting: the sum of the logarithms."""

from __future__ import annotations

from torch import Tensor

from mtobal.strategies.base import LossWeighting, Step
from mtobal.strategies.card import Card
from mtobal.strategies.loss.positive import log_slopes, positive_losses
from mtobal.strategies.registry import register


def scale_invariant_weights(losses: Tensor) -> Tensor:
    r"""Differentiate ``sum_k log L_k``.

    ``w_k = 1 / L_k``. Below 1e-8 the logarithm is continued by its tangent, so a loss of zero gets 1e8.

    Parameters
    ----------
    losses : Tensor of shape (K,)
        Not negative.

    Returns
    -------
    Tensor of shape (K,)

    References
    ----------
    The baseline SI of Navon, Shamsian, Achituve, Maron, Kawaguchi, Chechik and Fetaya, Multi-Task Learning as a
    Bargaining Game, ICML 2022, arXiv:2202.01017.
    """
    return log_slopes(losses)


@register("si")
class SI(LossWeighting):
    """Minimise the sum of the logarithms of the losses."""

    card = Card(
        summary="Minimises the sum of the logarithms of the losses.",
        when="Positive losses of different units: each task moves by the relative change of its loss. Gradients "
        "grow as losses fall, so watch the learning rate of a task that comes near zero.",
        paper="The scale-invariant baseline of Navon et al., Multi-Task Learning as a Bargaining Game, ICML 2022, "
        "arXiv:2202.01017.",
        defaults_source="No options.",
        scale="own",
        heads="weighted",
    )

    def weigh(self, step: Step) -> Tensor:
        return scale_invariant_weights(positive_losses(step, "si"))
