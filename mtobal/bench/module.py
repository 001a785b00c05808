"""The LightningModule that every recipe trains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torchmetrics import Metric

from mtobal.bench.records import MetricInfo
from mtobal.data import Batch
from mtobal.errors import UsageError
from mtobal.tasks import Task


class MultiTaskModule(pl.LightningModule):
    """Train one model on several tasks; evaluate it by their losses and metrics.

    Parameters
    ----------
    model : Module
        From inputs to the output of every task.
    tasks : sequence of Task
        The tasks to train; targets of others are left aside.
    learning_rate : float
        Of the Adam optimizer.
    """

    def __init__(self, model: nn.Module, tasks: Sequence[Task], learning_rate: float) -> None:
        super().__init__()
        self.model = model
        self.tasks = tuple(tasks)
        self.learning_rate = learning_rate
        metrics = {f"{task.name}/{name}": metric for task in tasks for name, metric in task.metrics().items()}
        self.metric_infos = tuple(_info(name, metric) for name, metric in metrics.items())
        self.metrics = nn.ModuleDict(metrics)
        self._loss_sums: dict[str, Tensor] = {}
        self._num_samples = 0

    def training_step(self, batch: Batch) -> dict[str, Any]:
        losses, _ = self._losses(batch)
        return {"loss": torch.stack([*losses.values()]).sum(), "losses": losses}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.model.parameters(), lr=self.learning_rate)

    def validation_step(self, batch: Batch) -> None:
        self._evaluate(batch)

    def test_step(self, batch: Batch) -> None:
        self._evaluate(batch)

    def on_validation_epoch_start(self) -> None:
        self._start_evaluation()

    def on_test_epoch_start(self) -> None:
        self._start_evaluation()

    def evaluation(self) -> tuple[dict[str, float], dict[str, float]]:
        """Return the mean losses by task and the metrics by name of the last validation or test."""
        losses = {task: float(total) / self._num_samples for task, total in self._loss_sums.items()}
        return losses, {name: float(metric.compute()) for name, metric in self._named_metrics()}

    def _losses(self, batch: Batch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        inputs, targets = batch
        outputs: dict[str, Tensor] = self.model(inputs)
        return {task.name: task.loss(outputs[task.name], targets[task.name]) for task in self.tasks}, outputs

    def _start_evaluation(self) -> None:
        for _, metric in self._named_metrics():
            metric.reset()
        self._loss_sums = {task.name: torch.zeros((), device=self.device) for task in self.tasks}
        self._num_samples = 0

    def _evaluate(self, batch: Batch) -> None:
        inputs, targets = batch
        losses, outputs = self._losses(batch)
        for task, loss in losses.items():
            self._loss_sums[task] += loss * len(inputs)
        self._num_samples += len(inputs)
        for name, metric in self._named_metrics():
            task = name.partition("/")[0]
            metric.update(outputs[task], targets[task])

    def _named_metrics(self) -> list[tuple[str, Metric]]:
        return [(name, metric) for name, metric in self.metrics.items() if isinstance(metric, Metric)]


def _info(name: str, metric: Metric) -> MetricInfo:
    if metric.higher_is_better is None:
        raise UsageError(f"metric {name!r} ({type(metric).__name__}) does not say whether higher is better.")
    return MetricInfo(name, name.partition("/")[0], bool(metric.higher_is_better))
