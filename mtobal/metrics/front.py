"""The hypervolume of a front of runs, as a torchmetric."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from mtobal.metrics.functional import hypervolume
from mtobal.metrics.runs import Scalars, vector


class Hypervolume(Metric):
    """`mtobal.metrics.hypervolume` of the points that were added; **higher is better**.

    Parameters
    ----------
    reference : mapping from str to float
        The point from which volumes are measured: metrics that every point should improve on.
    higher_is_better : mapping from str to bool
        For each metric, whether more is better.

    Examples
    --------
    >>> front = Hypervolume({"left": 0.0, "right": 0.0}, {"left": True, "right": True})
    >>> front.update({"left": 1.0, "right": 2.0})
    >>> front.update({"left": 2.0, "right": 1.0})
    >>> front.compute()
    tensor(3.)
    """

    higher_is_better = True
    full_state_update = False
    points: list[Tensor]

    def __init__(self, reference: Mapping[str, float], higher_is_better: Mapping[str, bool]) -> None:
        super().__init__()
        self.reference = dict(reference)
        self.directions = dict(higher_is_better)
        self.add_state("points", [], dist_reduce_fx="cat")
        self.reset()

    def update(self, metrics: Scalars) -> None:
        """Add a point."""
        self.points.append(vector(metrics, tuple(self.reference), "Hypervolume")[None].to(self.device))

    def reset(self) -> None:
        """Forget all points."""
        super().reset()
        # No points of the right size: a rank without any has to send something that fits those of others.
        self.points.append(torch.zeros(0, len(self.reference), dtype=torch.float64, device=self.device))

    def compute(self) -> Tensor:
        """Return the volume; zero without a point."""
        points = dim_zero_cat(self.points).tolist()
        named = [dict(zip(self.reference, point, strict=True)) for point in points]
        return torch.tensor(hypervolume(named, self.reference, self.directions), device=self.device)
