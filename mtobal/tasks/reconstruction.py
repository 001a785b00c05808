"""Reconstruction: an image from its representation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torchmetrics import Metric

from mtobal.tasks.labels import LabelledMean, labelled_mean
from mtobal.tasks.task import Task


@dataclass(frozen=True)
class Reconstruction(Task):
    """Give an image back; targets have the shape of the output, (N, channels, H, W), and NaN is no label.

    Examples
    --------
    >>> Reconstruction("image").loss(torch.zeros(1, 3, 2, 2), torch.full((1, 3, 2, 2), 0.5))
    tensor(0.2500)
    """

    name: str
    channels: int = 3
    main_metric: ClassVar[str] = "squared_error"

    @property
    def out_features(self) -> int:
        """One map a channel."""
        return self.channels

    def labelled(self, target: Tensor) -> Tensor:
        """Return where the target is a number."""
        return ~target.isnan()

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the mean squared error over all known values."""
        return labelled_mean(*_squared_error(output, target))

    def metrics(self) -> dict[str, Metric]:
        """Return the mean squared error over all known values."""
        return {"squared_error": LabelledMean(_squared_error, higher_is_better=False)}


def _squared_error(output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    labelled = ~target.isnan()
    return (output - torch.where(labelled, target, 0.0)).square(), labelled
