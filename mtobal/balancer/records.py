"""What the passes of a step leave behind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from mtobal.strategies import Step


@dataclass
class Applied:
    """What the last step did.

    Attributes
    ----------
    step : Step
    weights, heads : Tensor of shape (A,) or None
        On shared and on task-own gradients.
    gramian : Tensor of shape (A, A) or None
        Of the gradients of the raw losses.
    """

    step: Step
    weights: Tensor | None
    heads: Tensor
    gramian: Tensor | None


@dataclass
class Answer:
    """Weights on shared and on task-own gradients, and what is to be learned once they have been applied."""

    weights: list[float]
    heads: list[float]
    learn: Callable[[], None] | None = None


@dataclass
class Solution:
    """Weights that an aggregation gave, without those of the losses.

    Attributes
    ----------
    active : list of int
        The tasks that took part.
    weights, heads : Tensor
        On their shared and on their task-own gradients.
    age : int
        The number of steps that used it.
    """

    active: list[int]
    weights: Tensor
    heads: Tensor
    age: int = 1

    def serves(self, step: Step, every: int) -> bool:
        """Return whether a step may use it too."""
        return self.age < every and self.active == list(step.active)


def restricted(step: Step, active: Sequence[int]) -> Step:
    """Return the step without the tasks that are not among `active`."""
    if tuple(active) == step.active:
        return step
    places = [step.active.index(task) for task in active]
    return replace(step, active=tuple(active), losses=None if step.losses is None else step.losses[places])
