"""Regression: numbers a sample."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric

from mtobal.tasks.labels import LabelledMean, labelled_mean
from mtobal.tasks.task import Task


def _smooth_l1(difference: Tensor) -> Tensor:
    return F.smooth_l1_loss(difference, torch.zeros_like(difference), reduction="none")


_CRITERIA: dict[str, Callable[[Tensor], Tensor]] = {
    "squared": torch.square,
    "absolute": torch.abs,
    "smooth_l1": _smooth_l1,
}


@dataclass(frozen=True)
class Regression(Task):
    """Predict `size` numbers; targets are (N, size), and NaN is no label. Scored by the mean absolute error.

    Parameters
    ----------
    name : str
        The task.
    size : int
        How many numbers.
    criterion : str
        The error whose mean is the loss: squared, absolute or smooth_l1.
    unit : float
        What one unit of a standardised target is outside, in which the metric is told.

    Examples
    --------
    >>> Regression("mu").loss(torch.tensor([[3.0], [7.0]]), torch.tensor([[1.0], [torch.nan]]))
    tensor(4.)
    """

    name: str
    size: int = 1
    criterion: Literal["squared", "absolute", "smooth_l1"] = "squared"
    unit: float = 1.0
    main_metric: ClassVar[str] = "absolute_error"

    @property
    def out_features(self) -> int:
        """One output a number."""
        return self.size

    def labelled(self, target: Tensor) -> Tensor:
        """Return where the target is a number."""
        return ~target.isnan()

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the mean error over the numbers that are known."""
        labelled = ~target.isnan()
        difference = output - torch.where(labelled, target, 0.0)
        return labelled_mean(_CRITERIA[self.criterion](difference), labelled)

    def metrics(self) -> dict[str, Metric]:
        """Return the mean absolute error in the units outside."""
        return {"absolute_error": LabelledMean(partial(_error, unit=self.unit), higher_is_better=False)}


def _error(output: Tensor, target: Tensor, unit: float) -> tuple[Tensor, Tensor]:
    return unit * (output - target).abs(), ~target.isnan()
