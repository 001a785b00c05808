"""Single-label classification."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric

from mtobal.tasks.labels import MISSING, LabelledMean, labelled_mean
from mtobal.tasks.task import Task


def classification_loss(output: Tensor, target: Tensor) -> Tensor:
    """Mean cross entropy over the samples, or pixels, that have a label.

    Parameters
    ----------
    output : Tensor of shape (N, C) or (N, C, H, W)
        Logits.
    target : Tensor of shape (N,) or (N, H, W)
        Class indices; -1 marks a missing label.

    Returns
    -------
    Tensor
        A scalar. Without any label it is a zero without a graph.

    Examples
    --------
    >>> import torch
    >>> classification_loss(torch.zeros(3, 2), torch.tensor([0, -1, 1]))
    tensor(0.6931)
    """
    values = F.cross_entropy(output, target, ignore_index=MISSING, reduction="none")
    return labelled_mean(values, target != MISSING)


def right_class(output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return 1 where the class of the largest logit is the labelled one and 0 elsewhere, and where a label is."""
    return (output.argmax(dim=1) == target).float(), target != MISSING


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

    def labelled(self, target: Tensor) -> Tensor:
        """Return where the class is not -1."""
        return target != MISSING

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Return `classification_loss`."""
        return classification_loss(output, target)

    def metrics(self) -> dict[str, Metric]:
        """Return the share of labelled samples that are right."""
        return {"accuracy": LabelledMean(right_class, higher_is_better=True)}
