"""Surface normals: a direction a pixel."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor
from torchmetrics import Metric

from mtobal.tasks.labels import BatchMean, LabelledMean, labelled_mean
from mtobal.tasks.task import Task

BINS_PER_DEGREE = 1000
EPSILON = 1e-12
"""No output counts as shorter than this."""


class MedianAngle(Metric):
    """The median over all labelled pixels of a split of the angle between output and target, in degrees.

    Angles are counted in bins of a thousandth of a degree, so that memory does not grow with the split.
    """

    higher_is_better = False
    full_state_update = False
    counts: Tensor

    def __init__(self) -> None:
        super().__init__()
        # The last one counts what is no angle.
        self.add_state("counts", torch.zeros(180 * BINS_PER_DEGREE + 2, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, output: Tensor, target: Tensor) -> None:
        """Add a batch of (N, 3, H, W)."""
        angles, labelled = _angles(output, target)
        bins = (angles[labelled] * BINS_PER_DEGREE).nan_to_num(len(self.counts) - 1).long()
        self.counts += torch.bincount(bins, minlength=len(self.counts))

    def compute(self) -> Tensor:
        """Return the middle of the bin in which half of the pixels is reached.

        NaN without any label, and where any labelled pixel has no angle, as a mean would be.
        """
        reached = self.counts.cumsum(dim=0)
        if not reached[-1] or self.counts[-1]:
            return torch.full((), torch.nan, device=reached.device)
        half = (reached[-1:] + 1) // 2
        return (torch.searchsorted(reached, half)[0] + 0.5) / BINS_PER_DEGREE


@dataclass(frozen=True)
class Normals(Task):
    """Estimate the unit normal of every pixel; targets are (N, 3, H, W), and a vector of zeros is no label.

    Outputs need not have unit length. The loss is one minus the cosine of the angle, on average.

    Examples
    --------
    >>> list(Normals("normals").metrics())
    ['mean_angle', 'median_angle', 'within_11.25', 'within_22.5', 'within_30']
    """

    name: str
    main_metric: ClassVar[str] = "within_22.5"

    @property
    def out_features(self) -> int:
        """Three channels."""
        return 3

    def labelled(self, target: Tensor) -> Tensor:
        """Return where the vector is not zero, shape (N, H, W)."""
        return _labelled(target)

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Return one minus the mean cosine over the labelled pixels."""
        cosine, labelled = _cosine(output, target)
        return labelled_mean(1 - cosine, labelled)

    def metrics(self) -> dict[str, Metric]:
        """Return mean and median angle in degrees, and the shares of pixels within three thresholds."""
        return {
            "mean_angle": LabelledMean(_angles, higher_is_better=False),
            "median_angle": MedianAngle(),
            **{
                f"within_{degrees:g}": LabelledMean(partial(_within, degrees=degrees), higher_is_better=True)
                for degrees in (11.25, 22.5, 30)
            },
        }

    def batch_metrics(self) -> dict[str, Metric]:
        """Return the same averaged batch by batch."""
        return {name: BatchMean(metric, self.labelled) for name, metric in self.metrics().items()}


def _cosine(output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    # In single precision at least: a half cannot hold the epsilon of the norm.
    dtype = torch.promote_types(target.dtype, torch.float32)
    x, y, z = output.to(dtype).unbind(1)
    u, v, w = target.to(dtype).unbind(1)
    # Written out, as a norm of torch over so short a dimension takes ten times as long. The floor comes before the
    # root, which has no derivative at zero.
    length = (x * x + y * y + z * z).clamp(min=EPSILON**2).sqrt()
    return (x * u + y * v + z * w) / length, _labelled(target)


def _labelled(target: Tensor) -> Tensor:
    u, v, w = target.unbind(1)
    return (u != 0) | (v != 0) | (w != 0)


def _angles(output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    cosine, labelled = _cosine(output, target)
    return cosine.clamp(-1, 1).acos().rad2deg(), labelled


def _within(output: Tensor, target: Tensor, degrees: float) -> tuple[Tensor, Tensor]:
    angles, labelled = _angles(output, target)
    return (angles < degrees).float(), labelled
