"""Aggregations whose direction on the shared parameters is clipped to a norm."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from mtobal.errors import UsageError
from mtobal.strategies.base import Aggregation, Step


def clip_factor(weights: Tensor, gramian: Tensor, max_norm: float) -> float:
    """Return the factor that brings the norm of ``J^T w`` down to `max_norm`; zero means no clipping.

    It is that of ``torch.nn.utils.clip_grad_norm_``, without the 1e-6 that is added to the norm there.

    Examples
    --------
    >>> import torch
    >>> gramian = torch.tensor([[16.0, 0.0], [0.0, 9.0]], dtype=torch.float64)
    >>> round(clip_factor(torch.ones(2, dtype=torch.float64), gramian, max_norm=1.0), 4)
    0.2
    """
    if max_norm == 0:
        return 1.0
    w = weights.numpy()
    norm = math.sqrt(max(float(w @ gramian.numpy() @ w), 0.0))
    return max_norm / norm if norm > max_norm else 1.0


class ClippedAggregation(Aggregation):
    """An aggregation whose direction on the shared parameters has at most the norm `max_norm`.

    Weighted heads get the weights as they are before that.

    Parameters
    ----------
    max_norm : float
        Zero means no clipping.
    **common
        ``scale`` and ``heads``, as in every aggregation.
    """

    def __init__(self, max_norm: float = 1.0, **common: Any) -> None:
        super().__init__(**common)
        if not max_norm >= 0:
            raise UsageError(f"{type(self).__name__}: max_norm must not be negative, not {max_norm}.")
        self.max_norm = max_norm
        self.unclipped = torch.empty(0, dtype=torch.float64)  # of the last step

    def solve_unclipped(self, gramian: Tensor, step: Step) -> Tensor:
        """Return what `solve` returns, before clipping."""
        raise NotImplementedError

    def solve(self, gramian: Tensor, step: Step) -> Tensor:
        self.unclipped = self.solve_unclipped(gramian, step)
        return self.unclipped * clip_factor(self.unclipped, gramian, self.max_norm)

    def head_weights(self, weights: Tensor | None, step: Step) -> Tensor:
        return self.unclipped
