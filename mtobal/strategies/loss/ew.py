"""Equal weights."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from mtobal.strategies.base import LossWeighting, Step
from mtobal.strategies.card import Card
from mtobal.strategies.registry import register


def equal_weights(num_tasks: int, reduction: Literal["sum", "mean"] = "sum") -> Tensor:
    """Return the weights of the plain sum (1) or of the mean (1/K) of K losses."""
    return torch.full((num_tasks,), 1.0 if reduction == "sum" else 1.0 / num_tasks, dtype=torch.float64)


@register("ew")
class EW(LossWeighting):
    """Weigh every task alike.

    Parameters
    ----------
    reduction : {"sum", "mean"}
        Weights 1 or 1/K.
    """

    card = Card(
        summary="Weighs every task alike: the plain sum of the losses.",
        when="The baseline to beat, and often hard to beat once the learning rate is tuned.",
        paper="Linear scalarisation; see Kurin et al., In Defense of the Unitary Scalarization, NeurIPS 2022.",
        defaults_source="The sum, as in the benchmarks of Nash-MTL and LibMTL.",
        scale="sum",
        heads="weighted",
    )

    def __init__(self, reduction: Literal["sum", "mean"] = "sum") -> None:
        super().__init__()
        self.reduction: Literal["sum", "mean"] = reduction

    def weigh(self, step: Step) -> Tensor:
        weights = equal_weights(len(step.active), self.reduction)
        return weights if step.losses is None else weights.to(step.losses)
