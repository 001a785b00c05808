"""Geometric loss strategy."""

from __future__ import annotations

import torch
from torch import Tensor

from mtobal.strategies.base import LossWeighting, Step
from mtobal.strategies.card import Card
from mtobal.strategies.loss.positive import positive_losses
from mtobal.strategies.registry import register

# A loss below this share of the largest one counts as that share; zero would end all learning.
SMALLEST_SHARE = 1e-20


def geometric_weights(losses: Tensor) -> Tensor:
    r"""Differentiate the geometric mean of the losses, ``L = (prod_k L_k)^(1/K)``.

    ``w_k = L / (K L_k)``, so that ``sum_k w_k L_k = L``. Taken from logarithms: a product of losses soon under-
    or overflows.

    Parameters
    ----------
    losses : Tensor of shape (K,)
        Not negative.

    Returns
    -------
    Tensor of shape (K,)
        Unchanged when all losses are multiplied by a common factor; ``1/K`` where all are zero.

    References
    ----------
    Chennupati, Sistu, Yogamani and Rawashdeh, MultiNet++: Multi-Stream Feature Aggregation and Geometric Loss
    Strategy for Multi-Task Learning, CVPR Workshops 2019, arXiv:1904.08492.

    Examples
    --------
    >>> import torch
    >>> geometric_weights(torch.tensor([2.0, 0.5, 8.0]))
    tensor([0.3333, 1.3333, 0.0833])
    """
    largest = losses.max().clamp(min=torch.finfo(losses.dtype).tiny)
    logs = (losses / largest).clamp(min=SMALLEST_SHARE).log()
    return (logs.mean() - logs).exp() / len(losses)


@register("gls")
class GLS(LossWeighting):
    """Minimise the geometric mean of the losses."""

    card = Card(
        summary="Minimises the geometric mean of the losses.",
        when="Positive losses of different units: their scales cancel. A task whose loss comes near zero takes "
        "over.",
        paper="Chennupati et al., MultiNet++: Multi-Stream Feature Aggregation and Geometric Loss Strategy for "
        "Multi-Task Learning, CVPR Workshops 2019, arXiv:1904.08492.",
        defaults_source="No options.",
        scale="mean",
        heads="weighted",
    )

    def weigh(self, step: Step) -> Tensor:
        return geometric_weights(positive_losses(step, "gls"))
