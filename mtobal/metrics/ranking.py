"""The mean rank among methods, as a torchmetric."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mtobal.errors import unknown_name
from mtobal.metrics.functional import mean_rank
from mtobal.metrics.runs import RunMetric, Scalars


class MeanRank(RunMetric):
    """`mtobal.metrics.mean_rank` of the methods, each by the mean over its runs; **lower is better**.

    Parameters
    ----------
    methods : sequence of str
        Who is compared; leave the single-task baseline out.
    higher_is_better : mapping from str to bool
        For each metric, whether more is better.

    Examples
    --------
    >>> ranks = MeanRank(["ew", "uw"], {"acc": True, "error": False})
    >>> ranks.update("ew", {"acc": 0.8, "error": 2.0})
    >>> ranks.update("uw", {"acc": 0.9, "error": 2.0})
    >>> {method: rank.item() for method, rank in ranks.compute().items()}
    {'ew': 1.75, 'uw': 1.25}
    """

    higher_is_better = False

    def __init__(self, methods: Sequence[str], higher_is_better: Mapping[str, bool]) -> None:
        super().__init__(higher_is_better, rows=len(methods))
        self.methods = tuple(methods)
        self.directions = dict(higher_is_better)

    def update(self, method: str, metrics: Scalars) -> None:
        """Add a run of a method."""
        if method not in self.methods:
            raise unknown_name("method", method, self.methods)
        self._add(metrics, self.methods.index(method))

    def compute(self) -> dict[str, Tensor]:
        """Return the rank of every method; one without a run is last."""
        means = {method: self._mean(row) for row, method in enumerate(self.methods)}
        ranks = mean_rank(means, self.directions)
        return {method: torch.tensor(rank, device=self.device) for method, rank in ranks.items()}
