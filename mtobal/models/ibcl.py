"""Models for preferences over tasks, by averaging parameters that were learned for single tasks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mtobal.errors import UsageError

Parameters = Mapping[str, Tensor]


@dataclass(frozen=True)
class Gaussian:
    """Independent normal distributions of the parameters of a model.

    Attributes
    ----------
    mean, scale : mapping from str to Tensor
        Mean and standard deviation of each parameter, by its name in ``state_dict``. Of a model that was trained
        to single values the scale is zero.
    """

    mean: dict[str, Tensor]
    scale: dict[str, Tensor]

    @classmethod
    def at(cls, state: Parameters) -> Gaussian:
        """Return the distribution that is certain of these parameters."""
        mean = {name: value.detach().clone() for name, value in state.items()}
        return cls(mean, {name: torch.zeros_like(value) for name, value in mean.items()})

    def distance(self, other: Gaussian) -> float:
        """Return the distance of the means plus that of the scales, each divided by the number of parameters."""
        names = [name for name, value in self.mean.items() if value.is_floating_point()]  # no counters
        size = sum(self.mean[name].numel() for name in names)

        def norm(mine: Parameters, theirs: Parameters) -> float:
            return math.sqrt(sum(float((mine[name] - theirs[name]).square().sum()) for name in names))

        return (norm(self.mean, other.mean) + norm(self.scale, other.scale)) / size

    def interval(self, mass: float) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the bounds of the smallest region of each parameter that holds this much probability.

        Parameters
        ----------
        mass : float
            Between zero and one. The paper takes 0.99; the official code, which turns its option round, 0.01.
        """
        if not 0 < mass < 1:
            raise UsageError(f"the mass of an interval lies between zero and one, not at {mass}.")
        half = math.sqrt(2) * float(torch.erfinv(torch.tensor(mass, dtype=torch.float64)))
        return (
            {name: mean - half * self.scale[name] for name, mean in self.mean.items()},
            {name: mean + half * self.scale[name] for name, mean in self.mean.items()},
        )

    def sample(self, mass: float, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Draw parameters uniformly from the region of this mass, ready for ``load_state_dict``."""
        lower, upper = self.interval(mass)
        drawn = {}
        for name, low in lower.items():
            shares = torch.rand(low.shape, generator=generator, dtype=torch.float64).to(low)
            drawn[name] = torch.lerp(low, upper[name], shares)
        return drawn


def combine(extremes: Sequence[Gaussian], weights: Sequence[float]) -> Gaussian:
    """Average means and scales, each with its weight.

    Parameters
    ----------
    extremes : sequence of Gaussian
        Of the same parameters.
    weights : sequence of float
        With sum one.

    Returns
    -------
    Gaussian
    """

    def average(parts: Sequence[Parameters]) -> dict[str, Tensor]:
        return {
            name: torch.stack([weight * part[name] for weight, part in zip(weights, parts, strict=True)]).sum(0)
            for name in parts[0]
        }

    return Gaussian(average([part.mean for part in extremes]), average([part.scale for part in extremes]))


class PreferenceAveraging:
    """Knowledge of several tasks, from which a model for any preference over them follows without training.

    For each task one or more solutions are added: variational posteriors that start from those of the task before,
    or models fine-tuned from one another, so that averages of their parameters make sense. A solution that comes
    close to one that is known is not stored again.

    Parameters
    ----------
    tolerance : float
        Distance up to which two solutions count as one.

    References
    ----------
    Lu et al., IBCL: Zero-shot Model Generation under Stability-Plasticity Trade-offs, arXiv:2305.14782. It claims
    up to 45 % better average accuracy per task than its baselines, for arbitrary preferences.

    Examples
    --------
    >>> import torch
    >>> knowledge = PreferenceAveraging()
    >>> knowledge.add("left", [Gaussian.at({"weight": torch.tensor([1.0, 0.0])})])
    >>> knowledge.add("right", [Gaussian.at({"weight": torch.tensor([0.0, 1.0])})])
    >>> knowledge.model_for({"left": 0.25, "right": 0.75}).mean
    {'weight': tensor([0.2500, 0.7500])}
    """

    def __init__(self, tolerance: float = 0.01) -> None:
        self.tolerance = tolerance
        self.stored: list[Gaussian] = []
        self.members: dict[str, list[int]] = {}

    def add(self, task: str, solutions: Sequence[Gaussian]) -> None:
        """Take up the solutions of a task."""
        if not solutions or task in self.members:
            raise UsageError(f"task {task!r} needs at least one solution, and all of them at once.")
        names = (self.stored or solutions)[0].mean.keys()
        for solution in solutions:
            if solution.mean.keys() != names or solution.scale.keys() != names:
                raise UsageError(f"a solution of task {task!r} has other parameters than those before it.")
        self.members[task] = [self._index(solution) for solution in solutions]

    def model_for(self, preference: Mapping[str, float]) -> Gaussian:
        """Return the average for a preference.

        Parameters
        ----------
        preference : mapping from task to float
            Not negative, with any positive sum. Tasks that are left out count as zero.

        Returns
        -------
        Gaussian
            Each solution of a task weighs the task's share, divided by the number of its solutions.
        """
        total = sum(preference.values())
        if unknown := [task for task in preference if task not in self.members]:
            raise UsageError(f"no solution is known of task {unknown[0]!r}, only of {', '.join(self.members)}.")
        if not total > 0 or min(preference.values()) < 0:
            raise UsageError(f"a preference must not be negative, nor all zero: {dict(preference)}.")
        chosen = [
            (self.stored[index], share / total / len(self.members[task]))
            for task, share in preference.items()
            for index in self.members[task]
        ]
        return combine([solution for solution, _ in chosen], [weight for _, weight in chosen])

    def _index(self, solution: Gaussian) -> int:
        distances = [solution.distance(known) for known in self.stored]
        if distances and min(distances) <= self.tolerance:
            return distances.index(min(distances))
        self.stored.append(solution)
        return len(self.stored) - 1
