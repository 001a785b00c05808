"""Restoration: an image as it was before it was degraded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.image import peak_signal_noise_ratio

from mtobal.tasks.labels import LabelledMean, labelled_mean
from mtobal.tasks.task import Task


@dataclass(frozen=True)
class Restoration(Task):
    """Restore an image with values from 0 to 1; targets are (N, channels, H, W), and one with a NaN is no label.

    The loss is the mean absolute error.

    Examples
    --------
    >>> Restoration("denoise").loss(torch.zeros(1, 3, 2, 2), torch.full((1, 3, 2, 2), 0.5))
    tensor(0.5000)
    """

    name: str
    channels: int = 3
    main_metric: ClassVar[str] = "psnr"

    @property
    def out_features(self) -> int:
        """One map a channel."""
        return self.channels

    def labelled(self, target: Tensor) -> Tensor:
        """Return which images are known."""
        return ~target.flatten(1).isnan().any(1)

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the mean absolute error over all known images."""
        labelled = self.labelled(target)
        known = torch.where(labelled[:, None, None, None], target, 0.0)
        return labelled_mean((output - known).abs().flatten(1).mean(1), labelled)

    def metrics(self) -> dict[str, Metric]:
        """Return the mean over all known images of their peak signal-to-noise ratio in decibels."""
        return {"psnr": LabelledMean(self._psnr, higher_is_better=True)}

    def _psnr(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        ratios = peak_signal_noise_ratio(output, target, data_range=(0.0, 1.0), reduction="none", dim=(1, 2, 3))
        labelled = self.labelled(target)
        return torch.where(labelled, ratios, 0.0), labelled
