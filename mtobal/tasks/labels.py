"""What a sample or pixel without a label is to a loss and to a metric: nothing."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torchmetrics import Metric

from mtobal.errors import UsageError

MISSING = -1
"""The class of a sample or pixel without a label."""

Elementwise = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""From output and target to one value a sample or pixel, and which of them have a label."""


def labelled_mean(values: Tensor, labelled: Tensor) -> Tensor:
    """Mean of the values that have a label; what the others are does not matter, be it NaN.

    Returns
    -------
    Tensor
        A scalar. Without any label it is a zero without a graph, by which `mtobal.Balancer` knows that the task
        sits the step out; a zero on the graph would enter its solvers as a task with a gradient of zero.

    Examples
    --------
    >>> labelled_mean(torch.tensor([1.0, 3.0, torch.nan]), torch.tensor([True, True, False]))
    tensor(2.)
    """
    count = labelled.sum()
    if not count:
        return values.new_zeros(())
    return _labelled_sum(values, labelled) / count


def _labelled_sum(values: Tensor, labelled: Tensor) -> Tensor:
    if values.shape != labelled.shape:
        raise UsageError(
            f"expected one output for each entry of a target of shape {tuple(labelled.shape)}, "
            f"got {tuple(values.shape)}; give both the same shape."
        )
    # Zeros and no selection, which would need memory, and its backward a scatter. In single precision at least,
    # because a sum of halves overflows where their mean would not.
    return torch.where(labelled, values, 0.0).sum(dtype=torch.promote_types(values.dtype, torch.float32))


class LabelledMean(Metric):
    """The mean of an elementwise score over all labelled samples or pixels of a split.

    Parameters
    ----------
    elementwise : callable
        From output and target to the scores and to the mask of the labelled ones, both of one shape.
    higher_is_better : bool
        Whether more is better.

    Examples
    --------
    >>> metric = LabelledMean(lambda output, target: ((output - target).abs(), target > 0), higher_is_better=False)
    >>> metric.update(torch.tensor([1.0, 2.0]), torch.tensor([2.0, 0.0]))
    >>> metric.compute()
    tensor(1.)
    """

    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self, elementwise: Elementwise, *, higher_is_better: bool) -> None:
        super().__init__()
        self.elementwise = elementwise
        self._higher_is_better = higher_is_better
        self.add_state("total", torch.zeros(()), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    @property
    def higher_is_better(self) -> bool:  # type: ignore[override]
        """As it was given."""
        return self._higher_is_better

    def update(self, output: Tensor, target: Tensor) -> None:
        """Add a batch."""
        values, labelled = self.elementwise(output, target)
        self.total += _labelled_sum(values, labelled)
        self.count += labelled.sum()

    def compute(self) -> Tensor:
        """Return the mean; NaN without any label."""
        return self.total / self.count


class BatchMean(Metric):
    """The mean over batches of a metric of each batch, every batch counting the same.

    Older papers average so. It differs from the metric of the whole split where batches have unequal numbers of
    labels, and always for a median. A batch without a label is left out.

    Parameters
    ----------
    metric : Metric
        The metric of one batch.
    labelled : callable
        From a target to the mask of what has a label.
    """

    full_state_update = False
    total: Tensor
    batches: Tensor

    def __init__(self, metric: Metric, labelled: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.metric = metric
        self.labelled = labelled
        self.add_state("total", torch.zeros(()), dist_reduce_fx="sum")
        self.add_state("batches", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    @property
    def higher_is_better(self) -> bool | None:  # type: ignore[override]
        """As for the metric of one batch."""
        return self.metric.higher_is_better

    def update(self, output: Tensor, target: Tensor) -> None:
        """Add a batch."""
        known = self.labelled(target).any()
        # By a call, which gives the value of this batch alone; compute would wait for those of other ranks.
        value = self.metric(output, target)
        # NaN of a network that diverged counts; leaving it out would flatter the network.
        self.total += torch.where(known, value, 0.0)
        self.batches += known

    def compute(self) -> Tensor:
        """Return the mean over batches; NaN without any label."""
        return self.total / self.batches
