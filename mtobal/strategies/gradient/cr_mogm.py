"""CR-MOGM: the weights of another aggregation, averaged over the steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mtobal.errors import UsageError
from mtobal.strategies.base import Aggregation, Step
from mtobal.strategies.card import Card
from mtobal.strategies.registry import register
from mtobal.strategies.spec import build


def cr_mogm_weights(average: Tensor, weights: Tensor, alpha: float = 0.9) -> Tensor:
    r"""Return the moving average ``alpha * average + (1 - alpha) * weights``.

    Parameters
    ----------
    average : Tensor of shape (K,)
        The average so far; NaN for a task that has none yet, which starts from its weight.
    weights : Tensor of shape (K,)
        The weights of this step.
    alpha : float
        Share of the average that is kept, between 0 and 1.

    Returns
    -------
    Tensor of shape (K,)

    References
    ----------
    Zhou, Zhang, Jiang, Zhong, Gu and Zhu, On the Convergence of Stochastic Multi-Objective Gradient Manipulation
    and Beyond, NeurIPS 2022, algorithm 1.

    Examples
    --------
    >>> import torch
    >>> cr_mogm_weights(torch.tensor([0.5, float("nan")]), torch.tensor([1.0, 0.25]))
    tensor([0.5500, 0.2500])
    """
    return torch.where(average.isnan(), weights, alpha * average + (1 - alpha) * weights)


@register("cr_mogm")
class CRMOGM(Aggregation):
    """Smooth the weights of another aggregation by a moving average over the steps.

    Parameters
    ----------
    inner : str, mapping or Aggregation
        The aggregation whose weights are averaged, for example ``mgda(normalization=l2)``.
    alpha : float
        Share of the average that is kept at each step; zero smooths nothing.
    **common
        ``scale`` and ``heads``, as in every aggregation; the native scale and the default for the heads are those
        of the inner one.
    """

    card = Card(
        summary="Smooths the weights of another aggregation by a moving average over the steps.",
        when="Small batches make the weights of an aggregation jump. The averaged direction lags behind, so it "
        "may point against a task where that of the inner aggregation does not.",
        paper="Zhou et al., On the Convergence of Stochastic Multi-Objective Gradient Manipulation and Beyond, "
        "NeurIPS 2022.",
        defaults_source="MGDA and a constant share of 0.9; the paper lets the share grow as the learning rate "
        "falls.",
        state="the averaged weights, and the state of the inner aggregation",
        scale="mean",
        heads="weighted",
    )

    def __init__(
        self, inner: str | Mapping[str, Any] | Aggregation = "mgda", alpha: float = 0.9, **common: Any
    ) -> None:
        super().__init__(**common)
        composition = build(inner)
        aggregation = composition.aggregation
        if aggregation is None or composition.loss_weighting is not None or aggregation.reads != "gramian":
            raise UsageError(
                "cr_mogm averages the weights of one aggregation that reads the Gramian, and "
                f"{composition.spec!r} is none. A loss weighting stands beside it: 'uw+cr_mogm(inner=mgda)'."
            )
        if self.scale == "sum" and aggregation.card.scale == "own":
            raise UsageError(
                f"cr_mogm: {composition.spec!r} has a scale of its own, on which no factor gives that of the sum: "
                "leave scale='native'."
            )
        if not 0 <= alpha <= 1:
            raise UsageError(f"cr_mogm: alpha must lie between 0 and 1, got {alpha}.")
        self.inner = aggregation
        self.alpha = alpha
        self.heads = aggregation.heads if common.get("heads") is None else self.heads
        self.average: Tensor | None
        self.register_buffer("average", None)
        self._next: Tensor | None = None

    def solve(self, gramian: Tensor, step: Step) -> Tensor:
        average = self.average
        if average is None:
            average = torch.full((len(step.tasks),), torch.nan, dtype=torch.float64)
        active = list(step.active)
        weights = cr_mogm_weights(average[active], self.inner.weights(gramian, step), self.alpha)
        self._next = average.clone()
        self._next[active] = weights
        return weights

    def factor(self, step: Step) -> float:
        mean_scale = self.inner.card.scale == "mean" and self.inner.scale == "native"
        return float(len(step.active)) if self.scale == "sum" and mean_scale else 1.0

    def update(self, step: Step) -> None:
        self.average = self._next
        self.inner.update(step)

    def end_epoch(self) -> None:
        self.inner.end_epoch()
