"""Dynamic reward weighting by hypervolume, for losses."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from mtobal.errors import UsageError
from mtobal.solvers import hypervolume, non_dominated
from mtobal.strategies.base import Revision, Step, Validation
from mtobal.strategies.card import Card
from mtobal.strategies.per_task import PerTask, check_per_task, per_task
from mtobal.strategies.registry import register


def progress_factor(gain: float) -> float:
    """Return the factor on all losses for a gain in hypervolume: ``0.5 + 1.5 tanh(max(gain, 0))``.

    Examples
    --------
    >>> progress_factor(-1.0), round(progress_factor(0.1), 4)
    (0.5, 0.6495)
    """
    return 0.5 + 1.5 * float(np.tanh(max(gain, 0.0)))


@register("hypervolume")
class Hypervolume(Revision):
    """Learn more while validations extend the front of what was reached so far, and less while they do not.

    Parameters
    ----------
    preference : mapping or sequence of floats, optional
        Fixed weights of the tasks; by default one.
    objectives : {"losses", "metrics"}
        What is validated.
    relative : bool
        Whether gains are measured in proportion to the first validation. In raw units one objective of large
        numbers drowns the others.
    """

    card = Card(
        summary="Multiplies all losses by 0.5 to 2, by how much the last validation extended the front of what "
        "was reached before.",
        when="A few objectives, up to about six, whose weights are given and that should improve together. It "
        "scales the step as a whole, which an optimizer that normalises the gradient mostly undoes. The paper "
        "claims 0.850 rather than 0.832 on Math500 for an accuracy-focused policy.",
        paper="Learning to Optimize Multi-Objective Alignment Through Dynamic Reward Weighting, TACL 2026, "
        "arXiv:2509.11452.",
        defaults_source="The official formula on losses in place of rewards; gains in proportion to the first "
        "validation are ours (relative=false for raw units), and so is that a point worse than it counts as equal "
        "to it.",
        state="the first validation, the front, and the weights",
        scale="own",
        heads="weighted",
    )

    reference: Tensor | None
    front: Tensor | None

    def __init__(
        self,
        preference: PerTask | None = None,
        objectives: Literal["losses", "metrics"] = "losses",
        relative: bool = True,
    ) -> None:
        super().__init__()
        check_per_task(preference, "hypervolume: preference", minimum=0.0)
        self.preference = preference
        self.objectives: Literal["losses", "metrics"] = objectives
        self.relative = relative
        self.register_buffer("reference", None)
        self.register_buffer("front", None)  # improvements over the reference, none dominated

    def initial(self, tasks: tuple[str, ...]) -> Tensor:
        ones = torch.ones(len(tasks), dtype=torch.float64)
        return per_task(
            self.preference, 1.0, Step(tasks, tuple(range(len(tasks)))), ones, "hypervolume: preference"
        )

    def learn(self, validation: Validation) -> Tensor:
        values = self._upward(validation)
        if values.isnan().any():
            raise UsageError(
                f"hypervolume compares whole validations, but this one lacks values: {values.tolist()}."
            )
        preference = self.initial(validation.tasks)
        if self.reference is None:
            self.reference = values
            return preference
        units = self.reference.abs() if self.relative else torch.ones_like(values)
        gains = ((values - self.reference) / units.where(units > 0, 1.0)).clamp(min=0)[None].numpy()
        front = np.zeros((0, gains.shape[1])) if self.front is None else self.front.numpy()
        origin = np.zeros(gains.shape[1])
        extended = non_dominated(np.concatenate([front, gains]))
        gain = hypervolume(extended, origin) - hypervolume(front, origin)
        self.front = torch.from_numpy(extended)
        return preference * progress_factor(gain)

    def _upward(self, validation: Validation) -> Tensor:
        """Return the objectives with the sign that makes more better."""
        if self.objectives == "losses":
            return -validation.losses
        metrics, higher_is_better = validation.require_metrics("hypervolume(objectives=metrics)")
        return metrics.where(torch.tensor(higher_is_better), -metrics)
