"""Fixed weights given by the user."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mtobal.errors import UsageError, unknown_name
from mtobal.strategies.base import LossWeighting, Step
from mtobal.strategies.card import Card
from mtobal.strategies.registry import register


def static_weights(weights: Mapping[str, float] | Sequence[float], tasks: Sequence[str]) -> Tensor:
    """Put given weights in the order of the tasks.

    Parameters
    ----------
    weights : mapping from task to float, or sequence of K floats
        Every task must have one.
    tasks : sequence of K str
        Names of the tasks.

    Returns
    -------
    Tensor of shape (K,)

    Raises
    ------
    UsageError
        An unknown task, a task without weight, or another number of weights than tasks.
    """
    if isinstance(weights, Mapping):
        for name in weights:
            if name not in tasks:
                raise unknown_name("task in the static weights", name, tasks)
        missing = [task for task in tasks if task not in weights]
        if missing:
            raise UsageError(f"static weights: no weight for {', '.join(map(repr, missing))}.")
        values = [weights[task] for task in tasks]
    else:
        values = list(weights)
        if len(values) != len(tasks):
            raise UsageError(f"static weights: {len(values)} weights for {len(tasks)} tasks ({', '.join(tasks)}).")
    return torch.tensor(values, dtype=torch.float64)


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

    def __init__(self, weights: Mapping[str, float] | Sequence[float]) -> None:
        super().__init__()
        values = list(weights.values()) if isinstance(weights, Mapping) else list(weights)
        if not all(math.isfinite(value) and value >= 0 for value in values) or not any(values):
            raise UsageError(f"static weights must be finite, not negative and not all zero, not {weights!r}.")
        self.weights = weights

    def weigh(self, step: Step) -> Tensor:
        weights = static_weights(self.weights, step.tasks)[list(step.active)]
        return weights if step.losses is None else weights.to(step.losses)
