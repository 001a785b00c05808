"""Semantic segmentation: one class a pixel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torchmetrics import Metric

from mtobal.tasks.classification import classification_loss, right_class
from mtobal.tasks.labels import MISSING, LabelledMean
from mtobal.tasks.task import Task


class MeanIoU(Metric):
    """Intersection over union of each class over all pixels of a split, averaged over the classes.

    A class that neither labels nor predictions hold has no ratio and is left out.

    Parameters
    ----------
    num_classes : int
        Number of classes.

    Examples
    --------
    >>> metric = MeanIoU(3)
    >>> metric.update(torch.eye(3)[:, [0, 1, 1]][None, :, None], torch.tensor([[[0, 0, 1]]]))
    >>> metric.compute()
    tensor(0.5000)
    """

    higher_is_better = True
    full_state_update = False
    confusion: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.add_state("confusion", torch.zeros(num_classes, num_classes, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, output: Tensor, target: Tensor) -> None:
        """Add a batch of logits (N, C, H, W) and classes (N, H, W)."""
        labelled = target != MISSING
        cells = target[labelled] * self.num_classes + output.argmax(dim=1)[labelled]
        counts = torch.bincount(cells, minlength=self.num_classes**2)
        self.confusion += counts.view(self.num_classes, self.num_classes)

    def compute(self) -> Tensor:
        """Return the mean; NaN without any label."""
        hits = self.confusion.diagonal()
        return (hits / (self.confusion.sum(dim=0) + self.confusion.sum(dim=1) - hits)).nanmean()


@dataclass(frozen=True)
class Segmentation(Task):
    """Assign one of `num_classes` classes to every pixel; targets are (N, H, W) class indices, -1 for none.

    Examples
    --------
    >>> sorted(Segmentation("segmentation", num_classes=13).metrics())
    ['mean_iou', 'pixel_accuracy']
    """

    name: str
    num_classes: int
    main_metric: ClassVar[str] = "mean_iou"

    @property
    def out_features(self) -> int:
        """One logit a class."""
        return self.num_classes

    def labelled(self, target: Tensor) -> Tensor:
        """Return where the class is not -1."""
        return target != MISSING

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Return `classification_loss` over the labelled pixels."""
        return classification_loss(output, target)

    def metrics(self) -> dict[str, Metric]:
        """Return mean intersection over union and the share of pixels that are right."""
        return {
            "mean_iou": MeanIoU(self.num_classes),
            "pixel_accuracy": LabelledMean(right_class, higher_is_better=True),
        }
