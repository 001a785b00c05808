"""Random loss weighting."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from mtobal.strategies.base import LossWeighting, Step
from mtobal.strategies.card import Card
from mtobal.strategies.registry import register

Distribution = Literal["normal", "dirichlet"]


def random_scores(num_tasks: int, distribution: Distribution, generator: torch.Generator) -> Tensor:
    """Draw scores whose softmax is a random point of the simplex.

    Parameters
    ----------
    num_tasks : int
    distribution : {"normal", "dirichlet"}
        Independent standard normal scores; or scores whose softmax is uniform on the simplex, the Dirichlet
        distribution with all parameters one. So is the softmax of any choice of them.
    generator : torch.Generator

    Returns
    -------
    Tensor of shape (K,)
        Float64 on the CPU.

    References
    ----------
    Lin, Ye, Zhang and Tsang, Reasonable Effectiveness of Random Weighting: A Litmus Test for Multi-Task Learning,
    TMLR 2022, arXiv:2111.10603.
    """
    if distribution == "normal":
        return torch.randn(num_tasks, generator=generator, dtype=torch.float64)
    # Independent exponentials over their sum are uniform on the simplex.
    return torch.empty(num_tasks, dtype=torch.float64).exponential_(generator=generator).log()


def by_name(tasks: Sequence[str]) -> list[int]:
    """Return the indices of the tasks in the order of their names.

    Draws that are handed out in this order do not depend on the order in which a user gives the tasks.
    """
    return sorted(range(len(tasks)), key=tasks.__getitem__)


@register("rlw")
class RLW(LossWeighting):
    """Draw new weights at every step.

    Parameters
    ----------
    distribution : {"normal", "dirichlet"}
        The softmax of standard normals, or uniform on the simplex.
    seed : int
        Seed of the draws.
    """

    card = Card(
        summary="Draws new weights that sum to one at every step.",
        when="A baseline that costs nothing: what a method gains over it is not owed to mere variation.",
        paper="Lin et al., Reasonable Effectiveness of Random Weighting: A Litmus Test for Multi-Task Learning, "
        "TMLR 2022, arXiv:2111.10603.",
        defaults_source="Softmax of standard normals that sums to one, as in the official code (LibMTL).",
        state="a random generator",
        scale="mean",
        heads="weighted",
    )

    generator: torch.Generator

    def __init__(self, distribution: Distribution = "normal", seed: int = 0) -> None:
        super().__init__()
        self.distribution: Distribution = distribution
        self.generator = torch.Generator().manual_seed(seed)

    def weigh(self, step: Step) -> Tensor:
        drawn = random_scores(len(step.tasks), self.distribution, self.generator)
        scores = torch.empty_like(drawn)
        scores[by_name(step.tasks)] = drawn
        weights = scores[list(step.active)].softmax(0)
        return weights if step.losses is None else weights.to(step.losses)
