"""The metrics of several runs, and their mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

from mtobal.errors import UsageError

Scalars = Mapping[str, float | Tensor]
"""What a run measured: numbers or scalar tensors by metric name."""


def vector(metrics: Scalars, names: Sequence[str], owner: str) -> Tensor:
    """Return the metrics in the order of the names, which should be all of them."""
    if differing := sorted(metrics.keys() ^ set(names)):
        raise UsageError(
            f"{owner}: expected the metrics {', '.join(names)}; they differ in {', '.join(map(repr, differing))}."
        )
    return torch.tensor([float(metrics[name]) for name in names], dtype=torch.float64)


class RunMetric(Metric):
    """A score of the mean over runs of their metrics, such as one a seed.

    Parameters
    ----------
    names : mapping from str
        Its keys are the metrics that every run measures.
    rows : int
        How many methods are told apart.
    """

    full_state_update = False
    sums: Tensor
    runs: Tensor

    def __init__(self, names: Mapping[str, object], rows: int = 1) -> None:
        super().__init__()
        self.names = tuple(names)
        self.add_state("sums", torch.zeros(rows, len(names), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("runs", torch.zeros(rows, dtype=torch.int64), dist_reduce_fx="sum")

    def _add(self, metrics: Scalars, row: int = 0) -> None:
        self.sums[row] += vector(metrics, self.names, type(self).__name__).to(self.device)
        self.runs[row] += 1

    def _mean(self, row: int = 0) -> dict[str, float]:
        """Return the mean over runs; NaN before the first."""
        return dict(zip(self.names, (self.sums[row] / self.runs[row]).tolist(), strict=True))
