"""Multi-label classification: any number of labels a sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric

from mtobal.tasks.labels import MISSING, LabelledMean, labelled_mean
from mtobal.tasks.task import Task


class MeanF1(Metric):
    """F1 of each label over all samples that say yes or no to it, averaged over the labels.

    A label that nobody has and nobody predicts has no F1 and is left out. The metric of torchmetrics guesses from
    the batch whether it sees logits or probabilities; this one reads logits.
    """

    higher_is_better = True
    full_state_update = False
    hits: Tensor
    errors: Tensor

    def __init__(self, num_labels: int) -> None:
        super().__init__()
        self.add_state("hits", torch.zeros(num_labels, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("errors", torch.zeros(num_labels, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, output: Tensor, target: Tensor) -> None:
        """Add a batch of logits and labels, both (N, L)."""
        predicted = output > 0
        self.hits += (predicted & (target == 1)).sum(dim=0)
        self.errors += ((predicted != (target == 1)) & (target != MISSING)).sum(dim=0)

    def compute(self) -> Tensor:
        """Return the mean; NaN without any label."""
        return (2 * self.hits / (2 * self.hits + self.errors)).nanmean()


@dataclass(frozen=True)
class MultiLabel(Task):
    """Say yes or no to each of `num_labels` labels; targets are (N, L) with 1, 0, and -1 for not known.

    Examples
    --------
    >>> task = MultiLabel("attributes", num_labels=2)
    >>> task.loss(torch.zeros(1, 2), torch.tensor([[1, -1]]))
    tensor(0.6931)
    """

    name: str
    num_labels: int = 1
    main_metric: ClassVar[str] = "f1"

    @property
    def out_features(self) -> int:
        """One logit a label."""
        return self.num_labels

    def labelled(self, target: Tensor) -> Tensor:
        """Return where the label is not -1."""
        return target != MISSING

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the mean binary cross entropy over the labels that are known."""
        labelled = target != MISSING
        truth = (target == 1).to(output.dtype)
        values = F.binary_cross_entropy_with_logits(output, truth, reduction="none")
        return labelled_mean(values, labelled)

    def metrics(self) -> dict[str, Metric]:
        """Return F1 (macro average over labels) and the share of known labels that are right."""
        return {"f1": MeanF1(self.num_labels), "accuracy": LabelledMean(_right, higher_is_better=True)}


def _right(output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    return ((output > 0) == (target == 1)).float(), target != MISSING
