"""The change against single-task training, as torchmetrics."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from mtobal.metrics.functional import delta_m, delta_p
from mtobal.metrics.runs import RunMetric, Scalars


class DeltaM(RunMetric):
    """`mtobal.metrics.delta_m` of the mean over runs, which is also the mean of theirs; **lower is better**.

    Parameters
    ----------
    baseline : mapping from str to float
        The metrics of single-task training.
    higher_is_better : mapping from str to bool
        For each metric, whether more is better.

    Examples
    --------
    >>> score = DeltaM({"acc": 0.8, "error": 2.0}, {"acc": True, "error": False})
    >>> score.update({"acc": 0.8, "error": 2.2})
    >>> score.update({"acc": 0.8, "error": 2.6})
    >>> round(score.compute().item(), 4)
    10.0
    """

    higher_is_better = False

    def __init__(self, baseline: Mapping[str, float], higher_is_better: Mapping[str, bool]) -> None:
        super().__init__(baseline)
        self.baseline = dict(baseline)
        self.directions = dict(higher_is_better)

    def update(self, metrics: Scalars) -> None:
        """Add a run."""
        self._add(metrics)

    def compute(self) -> Tensor:
        """Return the score in percent; NaN without a run."""
        return torch.tensor(delta_m(self._mean(), self.baseline, self.directions), device=self.device)


class DeltaP(RunMetric):
    """`mtobal.metrics.delta_p` of the mean over runs, which is also the mean of theirs; **higher is better**.

    Parameters
    ----------
    baseline : mapping from str to float
        The metrics of single-task training.
    higher_is_better : mapping from str to bool
        For each metric, whether more is better.
    tasks : mapping from str to str
        For each metric, the task it belongs to.

    Examples
    --------
    >>> metrics = {"acc": True, "error": False}
    >>> score = DeltaP({"acc": 0.8, "error": 2.0}, metrics, {"acc": "seg", "error": "depth"})
    >>> score.update({"acc": 0.8, "error": 2.4})
    >>> round(score.compute().item(), 4)
    -10.0
    """

    higher_is_better = True

    def __init__(
        self, baseline: Mapping[str, float], higher_is_better: Mapping[str, bool], tasks: Mapping[str, str]
    ) -> None:
        super().__init__(baseline)
        self.baseline = dict(baseline)
        self.directions = dict(higher_is_better)
        self.tasks = dict(tasks)

    def update(self, metrics: Scalars) -> None:
        """Add a run."""
        self._add(metrics)

    def compute(self) -> Tensor:
        """Return the score in percent; NaN without a run."""
        return torch.tensor(delta_p(self._mean(), self.baseline, self.directions, self.tasks), device=self.device)
