"""How much each task is to count, as the aggregations that follow a preference read it."""

from __future__ import annotations

import torch
from torch import Tensor

from mtobal.strategies.base import Step
from mtobal.strategies.per_task import PerTask, per_task


def normalized_preference(strategy: str, preference: PerTask | None, step: Step) -> Tensor:
    """Return the preference among the active tasks, adding up to one.

    It is uniform without one, and where every active task has a preference of zero.
    """
    size = len(step.active)
    if preference is not None:
        like = torch.empty(size, dtype=torch.float64)
        values = per_task(preference, 1.0, step, like, f"the preference of {strategy}")
        if values.any():
            return values / values.sum()
    return torch.full((size,), 1.0 / size, dtype=torch.float64)
