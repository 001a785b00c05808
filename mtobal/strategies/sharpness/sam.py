"""Sharpness-aware minimisation of the weighted sum of the losses."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from mtobal.errors import UsageError
from mtobal.gradients import Landscape, Point
from mtobal.strategies.base import Perturbation, Step
from mtobal.strategies.card import Card
from mtobal.strategies.registry import register
from mtobal.strategies.sharpness.ball import ascent


@register("sam")
class SAM(Perturbation):
    """Take all gradients at the point where the sum of the losses is highest nearby.

    The point lies on the gradient of the sum under the loss weights, over all parameters together, at the distance
    `rho`. It is one and the same for all tasks.

    Parameters
    ----------
    rho : float
        The distance.
    adaptive : bool
        Whether it is measured relative to the parameters; then larger ones, such as 0.5 to 2, are usual.
    """

    card = Card(
        summary="Takes all gradients where the sum of the losses is highest nearby.",
        when="To reach flat minima at the price of a second forward and backward pass, whatever the number of "
        "tasks; samo and f_mtl look at each task by itself, and cost more.",
        paper="Foret et al., Sharpness-Aware Minimization for Efficiently Improving Generalization, ICLR 2021, "
        "arXiv:2010.01412.",
        defaults_source="rho of the paper; one norm over all parameters, as there.",
        scale="sum",
        degree=None,
    )
    forward_passes = "2"
    backward_passes = "1 and those of the aggregation"

    def __init__(self, rho: float = 0.05, adaptive: bool = False) -> None:
        super().__init__()
        check_radius("sam", rho)
        self.rho = rho
        self.adaptive = adaptive

    def points(self, landscape: Landscape, step: Step, weights: Tensor) -> Iterator[Point]:
        total = landscape.gradient(weights)
        yield (
            range(len(step.active)),
            ascent(total, landscape.parameters, self.rho, adaptive=self.adaptive),
        )


def check_radius(strategy: str, rho: float) -> None:
    """Refuse a radius that is none."""
    if not 0 <= rho < float("inf"):
        raise UsageError(f"{strategy}: rho must be finite and not negative, not {rho}.")
