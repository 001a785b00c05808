"""Fixed weights given by the user."""

from __future__ import annotations

import torch
from torch import Tensor

from mtobal.strategies.base import LossWeighting, Step
from mtobal.strategies.card import Card
from mtobal.strategies.per_task import PerTask, check_per_task, per_task
from mtobal.strategies.registry import register


@register("static")
class Static(LossWeighting):
    """Weigh the tasks by fixed numbers.

    Parameters
    ----------
    weights : mapping from task to float, or sequence of floats
        In the order of the tasks if they are not named.
    """

    card = Card(
        summary="Weighs the tasks by numbers that the user gives.",
        when="When good weights are known, or as one point of a sweep that any method should be compared with.",
        paper="Linear scalarisation; see Xin et al., Do Current Multi-Task Optimization Methods Even Help?, "
        "NeurIPS 2022.",
        defaults_source="No default: the weights must be given.",
        scale="own",
        heads="weighted",
        example="static(weights={seg: 1.0, depth: 0.5, normal: 2.0})",
    )

    def __init__(self, weights: PerTask) -> None:
        super().__init__()
        check_per_task(weights, "static: weights", minimum=0.0)
        self.weights = weights

    def weigh(self, step: Step) -> Tensor:
        like = torch.ones(len(step.active), dtype=torch.float64) if step.losses is None else step.losses
        return per_task(self.weights, 1.0, step, like, "static: weights")
