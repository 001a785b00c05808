"""The coordinate-wise trimmed mean."""

from __future__ import annotations

from typing import Any

from mtobal.errors import UsageError
from mtobal.ops import Jacobian, trimmed_mean_of_blocks
from mtobal.strategies.base import Direction, JacobianAggregation, Step
from mtobal.strategies.card import Card
from mtobal.strategies.registry import register


@register("trimmed_mean")
class TrimmedMean(JacobianAggregation):
    """Drop the largest and the smallest entries of each coordinate, and average the rest.

    Parameters
    ----------
    trim : int
        How many entries are dropped at each end. Where only 2 trim tasks or fewer have a loss, as many are dropped
        as leave one or two entries: the median.
    **common
        ``scale`` and ``heads``, as in every aggregation.

    See Also
    --------
    mtobal.ops.trimmed_mean : the formula.
    """

    card = Card(
        summary="Drops the largest and the smallest entries of each coordinate, and averages the rest.",
        when="Many tasks of which a few may send broken gradients. Of a handful of tasks it keeps the middle one "
        "of each coordinate, which may serve none of them.",
        paper="Yin et al., Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates, ICML 2018, "
        "arXiv:1803.01498.",
        defaults_source="One entry at each end, the least that trims; the paper sets it by the number of broken "
        "workers. Heads keep their own gradient.",
        scale="mean",
        heads="raw",
    )

    def __init__(self, trim: int = 1, **common: Any) -> None:
        super().__init__(**common)
        if trim < 0:
            raise UsageError(f"trimmed_mean: trim must not be negative, not {trim}.")
        self.trim = trim

    def direct(self, jacobian: Jacobian, step: Step) -> Direction:
        trim = min(self.trim, (len(step.active) - 1) // 2)
        return Direction(trimmed_mean_of_blocks(jacobian.blocks, trim))
