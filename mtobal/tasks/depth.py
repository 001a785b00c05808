"""Depth estimation: a distance a pixel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torchmetrics import Metric

from mtobal.tasks.labels import BatchMean, LabelledMean, labelled_mean
from mtobal.tasks.task import Task


@dataclass(frozen=True)
class Depth(Task):
    """Estimate the depth of every pixel; targets are (N, 1, H, W), and what is not above zero is no label.

    The loss is the mean absolute error.

    Examples
    --------
    >>> task = Depth("depth")
    >>> task.loss(torch.full((1, 1, 1, 3), 2.0), torch.tensor([1.0, 4.0, 0.0]).view(1, 1, 1, 3))
    tensor(1.5000)
    """

    name: str
    main_metric: ClassVar[str] = "relative_error"

    @property
    def out_features(self) -> int:
        """One channel."""
        return 1

    def labelled(self, target: Tensor) -> Tensor:
        """Return where the depth is above zero."""
        return target > 0

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the mean absolute error over the labelled pixels."""
        return labelled_mean(*_absolute_error(output, target))

    def metrics(self) -> dict[str, Metric]:
        """Return the mean of the absolute and of the relative error over all labelled pixels."""
        return {
            "absolute_error": LabelledMean(_absolute_error, higher_is_better=False),
            "relative_error": LabelledMean(_relative_error, higher_is_better=False),
        }

    def batch_metrics(self) -> dict[str, Metric]:
        """Return the same averaged batch by batch."""
        return {name: BatchMean(metric, self.labelled) for name, metric in self.metrics().items()}


def _absolute_error(output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    labelled = target > 0
    # A NaN in the target would pass through the derivative even where its value is left out.
    return (output - torch.where(labelled, target, 0.0)).abs(), labelled


def _relative_error(output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    error, labelled = _absolute_error(output, target)
    return error / target, labelled
