"""What every task answers: its loss, its metrics and how many outputs its head has."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor
from torchmetrics import Metric


class Task(ABC):
    """One task of a multi-task problem.

    Attributes
    ----------
    name : str
        The key of the task's target, output and loss.
    main_metric : str
        The metric of `metrics()` that speaks for the task where a single number is needed.
    """

    name: str
    main_metric: ClassVar[str]

    @property
    @abstractmethod
    def out_features(self) -> int:
        """Size of the head: outputs a sample, or channels of a map."""

    @abstractmethod
    def labelled(self, target: Tensor) -> Tensor:
        """Return which samples or pixels of a target have a label."""

    @abstractmethod
    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the mean loss of the labelled samples or pixels of a batch.

        Without any label it is a zero without a graph: the task sits the step out.
        """

    @abstractmethod
    def metrics(self) -> dict[str, Metric]:
        """Return new metrics over a whole split by name; each says itself whether higher is better."""

    def batch_metrics(self) -> dict[str, Metric]:
        """Return new metrics in the convention of older papers, which average some of them batch by batch."""
        return self.metrics()
