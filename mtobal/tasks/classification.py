"""Single-label classification."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy

from mtobal.tasks.task import Task

MISSING = -1
"""The class index of a sample without a label."""


def classification_loss(output: Tensor, target: Tensor) -> Tensor:
    """Mean cross entropy over the samples that have a label.

    Parameters
    ----------
    output : Tensor of shape (N, C)
        Logits.
    target : Tensor of shape (N,)
        Class indices; -1 marks a missing label.

    Returns
    -------
    Tensor
        A scalar. Without any label it is a zero that still hangs on the graph, with zero gradients.

    Examples
    --------
    >>> import torch
    >>> classification_loss(torch.zeros(3, 2), torch.tensor([0, -1, 1]))
    tensor(0.6931)
    """
    total = F.cross_entropy(output, target, ignore_index=MISSING, reduction="sum")
    # The mean of torch divides by the number of labels, which is NaN for none.
    return total / (target != MISSING).sum().clamp(min=1)


@dataclass(frozen=True)
class Classification(Task):
    """Assign one of `num_classes` classes; scored by the share of labelled samples that are right.

    Examples
    --------
    >>> task = Classification("left", num_classes=10)
    >>> task.out_features, task.main_metric
    (10, 'accuracy')
    """

    name: str
    num_classes: int
    main_metric: ClassVar[str] = "accuracy"

    @property
    def out_features(self) -> int:
        """One logit a class."""
        return self.num_classes

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Return `classification_loss`."""
        return classification_loss(output, target)

    def metrics(self) -> dict[str, Metric]:
        """Return the accuracy over all labelled samples (micro average)."""
        return {"accuracy": MulticlassAccuracy(self.num_classes, average="micro", ignore_index=MISSING)}
