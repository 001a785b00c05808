"""The LightningModule that every recipe trains."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
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
    learning_rate, weight_decay : float
        Of the Adam optimizer.
    decay_epochs : int
        After every so many epochs the learning rate is multiplied by `decay_factor`; 0 for never.
    decay_factor : float
        What it is multiplied by.
    batch_metrics : bool
        Evaluate in the convention of older papers, which average some metrics batch by batch.
    """

    def __init__(
        self,
        model: nn.Module,
        tasks: Sequence[Task],
        learning_rate: float,
        *,
        weight_decay: float = 0.0,
        decay_epochs: int = 0,
        decay_factor: float = 0.5,
        batch_metrics: bool = False,
    ) -> None:
        super().__init__()
        self.model = model
        self.tasks = tuple(tasks)
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.decay_epochs = decay_epochs
        self.decay_factor = decay_factor
        metrics = {
            f"{task.name}/{name}": metric
            for task in tasks
            for name, metric in (task.batch_metrics() if batch_metrics else task.metrics()).items()
        }
        self.metric_infos = tuple(_info(name, metric) for name, metric in metrics.items())
        self.metrics = nn.ModuleList(metrics.values())  # a ModuleDict refuses names with a dot
        self._loss_sums: dict[str, Tensor] = {}
        self._label_counts: dict[str, Tensor] = {}

    def training_step(self, batch: Batch) -> dict[str, Any] | None:
        outputs = self._outputs(batch)
        losses = {
            task.name: task.loss(outputs[task.name], target) if task.labelled(target).any() else None
            for task, target in self._targets(batch)
        }
        present = [loss for loss in losses.values() if loss is not None]
        if not present:
            return None  # Lightning's word for a batch that has no step
        return {"loss": torch.stack(present).sum(), "losses": losses}

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = torch.optim.Adam(
            self.model.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay
        )
        if not self.decay_epochs:
            return optimizer
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, self.decay_epochs, self.decay_factor)]

    def validation_step(self, batch: Batch) -> None:
        self._evaluate(batch)

    def test_step(self, batch: Batch) -> None:
        self._evaluate(batch)

    def on_validation_epoch_start(self) -> None:
        self._start_evaluation()

    def on_test_epoch_start(self) -> None:
        self._start_evaluation()

    def evaluation(self) -> tuple[dict[str, float], dict[str, float]]:
        """Return the mean losses by task and the metrics by name of the last validation or test.

        A loss is the mean over all labels of the split, whatever the batches they came in; NaN without any.
        """
        losses = {task: float(total / self._label_counts[task]) for task, total in self._loss_sums.items()}
        return losses, {info.name: float(metric.compute()) for info, metric in self._metrics()}

    def _outputs(self, batch: Batch) -> dict[str, Tensor]:
        outputs: dict[str, Tensor] = self.model(batch[0])
        return outputs

    def _targets(self, batch: Batch) -> Iterator[tuple[Task, Tensor]]:
        """Go through the tasks that the batch has targets of."""
        for task in self.tasks:
            if task.name in batch[1]:
                yield task, batch[1][task.name]

    def _start_evaluation(self) -> None:
        for _, metric in self._metrics():
            metric.reset()
        self._loss_sums = {task.name: torch.zeros((), device=self.device) for task in self.tasks}
        self._label_counts = {
            task.name: torch.zeros((), dtype=torch.int64, device=self.device) for task in self.tasks
        }

    def _evaluate(self, batch: Batch) -> None:
        outputs = self._outputs(batch)
        for task, target in self._targets(batch):
            labels = task.labelled(target).sum()
            self._loss_sums[task.name] += task.loss(outputs[task.name], target) * labels
            self._label_counts[task.name] += labels
        for info, metric in self._metrics():
            if info.task in batch[1]:
                metric.update(outputs[info.task], batch[1][info.task])

    def _metrics(self) -> Iterator[tuple[MetricInfo, Metric]]:
        for info, metric in zip(self.metric_infos, self.metrics, strict=True):
            assert isinstance(metric, Metric)
            yield info, metric


def _info(name: str, metric: Metric) -> MetricInfo:
    if metric.higher_is_better is None:
        raise UsageError(f"metric {name!r} ({type(metric).__name__}) does not say whether higher is better.")
    return MetricInfo(name, name.partition("/")[0], bool(metric.higher_is_better))
