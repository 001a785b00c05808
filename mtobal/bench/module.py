"""The LightningModule that every recipe trains."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torchmetrics import Metric

from mtobal.bench import teams
from mtobal.bench.records import MetricInfo
from mtobal.callbacks import MultiTaskBalancer
from mtobal.data import Batch
from mtobal.errors import UsageError
from mtobal.gradients import Ranks
from mtobal.models.base import MultiTaskModel
from mtobal.strategies import Composition
from mtobal.tasks import Task


class MultiTaskModule(pl.LightningModule):
    """Train one model on several tasks; evaluate it by their losses and metrics.

    Parameters
    ----------
    model : MultiTaskModel
        What it asks for beside the losses, its penalty, belongs to the losses in training, not in evaluation.
    tasks : sequence of Task
        The tasks to train; targets of others are left aside.
    learning_rate, weight_decay : float
        Of the Adam optimizer.
    decay_epochs : int
        After every so many epochs the learning rate is multiplied by `decay_factor`; 0 for never.
    decay_factor : float
        What it is multiplied by.
    decay_patience : int
        The learning rate is multiplied by `decay_factor` whenever the mean validation loss of the tasks has not
        fallen for more than so many epochs, down to a hundredth; 0 for never.
    batch_metrics : bool
        Evaluate in the convention of older papers, which average some metrics batch by batch.
    """

    def __init__(
        self,
        model: MultiTaskModel,
        tasks: Sequence[Task],
        learning_rate: float,
        *,
        weight_decay: float = 0.0,
        decay_epochs: int = 0,
        decay_factor: float = 0.5,
        decay_patience: int = 0,
        batch_metrics: bool = False,
    ) -> None:
        super().__init__()
        self.model = model
        self.tasks = tuple(tasks)
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.decay_epochs = decay_epochs
        self.decay_factor = decay_factor
        self.decay_patience = decay_patience
        self._plateau: torch.optim.lr_scheduler.ReduceLROnPlateau | None = None
        self._plateau_state: dict[str, Any] | None = None
        metrics = {
            f"{task.name}/{name}": metric
            for task in tasks
            for name, metric in (task.batch_metrics() if batch_metrics else task.metrics()).items()
        }
        self.metric_infos = tuple(_info(name, metric) for name, metric in metrics.items())
        self.metrics = nn.ModuleList(metrics.values())  # a ModuleDict refuses names with a dot
        for metric in self.metrics.modules():
            if isinstance(metric, Metric):  # every process of a team evaluates the whole split
                metric.sync_on_compute = False
        self._loss_sums: dict[str, Tensor] = {}
        self._label_counts: dict[str, Tensor] = {}
        self._representation_reader: str | None = None
        self._tells_losses = False

    def on_fit_start(self) -> None:
        callbacks: list[pl.Callback] = self.trainer.callbacks  # type: ignore[attr-defined]
        strategies = [each.strategy for each in callbacks if isinstance(each, MultiTaskBalancer)]
        self._representation_reader = next((each.spec for each in strategies if _reads_representation(each)), None)
        self._tells_losses = any(each.revision is not None for each in strategies)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        if batch_idx == 0:  # Lightning leaves on_train_epoch_start out for the epoch after a resumption
            epoch = self.trainer.current_epoch
            self.model.start_epoch(epoch, max(self.trainer.max_epochs or 0, epoch + 1))

    def training_step(self, batch: Batch) -> dict[str, Any] | None:
        inputs = batch[0]
        representation = self.model.encode(inputs)
        if isinstance(representation, dict) and self._representation_reader is not None:
            raise UsageError(
                f"{self._representation_reader!r} compares the gradients of all tasks at one representation, and "
                f"here every task has one of its own ({type(self.model).__name__} on these data): choose a "
                "strategy that reads losses or gradients of parameters, or a model whose decoders read one tensor."
            )
        outputs = self.model.decode(representation, inputs)
        penalties = self.model.penalty(inputs)
        losses: dict[str, Tensor | None] = {}
        shares = self._shares(batch)
        for task, target in self._targets(batch):
            losses[task.name] = None
            if task.name in shares:
                share, output = shares[task.name], outputs[task.name]
                loss = task.loss(output, target) * share if share else 0 * output.sum()
                losses[task.name] = loss + penalties[task.name] if task.name in penalties else loss
        present = [loss for loss in losses.values() if loss is not None]
        if not present:
            if teams.size() > 1:
                raise UsageError("a batch has no label of any task, which several devices cannot skip: use one.")
            return None  # Lightning's word for a batch that has no step
        step = {"loss": torch.stack(present).sum(), "losses": losses}
        return {**step, "representation": representation} if isinstance(representation, Tensor) else step

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = torch.optim.Adam(
            self.model.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay
        )
        if self.decay_patience:
            self._plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
                optimizer, factor=self.decay_factor, patience=self.decay_patience, min_lr=self.learning_rate / 100
            )
            if self._plateau_state is not None:
                self._plateau.load_state_dict(self._plateau_state)
        if not self.decay_epochs:
            return optimizer
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, self.decay_epochs, self.decay_factor)]

    def on_train_epoch_end(self) -> None:
        # Lightning steps such a schedule after the checkpoint of the epoch, and not at all when it resumes there.
        if self._plateau is not None:
            self._plateau.step(statistics.fmean(self._mean_losses().values()))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self._plateau is not None:
            checkpoint["plateau"] = self._plateau.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._plateau_state = checkpoint.get("plateau")  # there is no optimizer yet

    def validation_step(self, batch: Batch) -> None:
        self._evaluate(batch)

    def test_step(self, batch: Batch) -> None:
        self._evaluate(batch)

    def on_validation_epoch_start(self) -> None:
        self._start_evaluation()

    def on_validation_epoch_end(self) -> None:
        if self._tells_losses:  # to strategies that revise their weights by validations
            self.log_dict({f"val/loss/{task}": loss for task, loss in self._mean_losses().items()})

    def on_test_epoch_start(self) -> None:
        self._start_evaluation()

    def evaluation(self) -> tuple[dict[str, float], dict[str, float]]:
        """Return the mean losses by task and the metrics by name of the last validation or test.

        A loss is the mean over all labels of the split, whatever the batches they came in; NaN without any.
        """
        metrics = {info.name: float(metric.compute()) for info, metric in self._metrics()}
        return self._mean_losses(), teams.from_first(metrics)

    def _shares(self, batch: Batch) -> dict[str, float]:
        """Return by what each loss is multiplied, so that its mean over the ranks is that over all labels.

        That is the number of labels here, relative to the mean over the ranks. A task without any label, here
        and elsewhere, is left out.
        """
        here = {task.name: task.labelled(target).sum() for task, target in self._targets(batch)}
        if not here:
            return {}
        counts = torch.stack(list(here.values()))
        ranks = Ranks.now()
        totals = ranks.sum(counts) if ranks.size > 1 else counts
        return {
            task: count * ranks.size / total
            for task, count, total in zip(here, counts.tolist(), totals.tolist(), strict=True)
            if total
        }

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

    def _mean_losses(self) -> dict[str, float]:
        losses = {task: float(total / self._label_counts[task]) for task, total in self._loss_sums.items()}
        return teams.from_first(losses)

    def _evaluate(self, batch: Batch) -> None:
        outputs = self.model(batch[0])
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


def _reads_representation(strategy: Composition) -> bool:
    return any(part.reads == "representation" for part in strategy.strategies)


def _info(name: str, metric: Metric) -> MetricInfo:
    if metric.higher_is_better is None:
        raise UsageError(f"metric {name!r} ({type(metric).__name__}) does not say whether higher is better.")
    return MetricInfo(name, name.partition("/")[0], bool(metric.higher_is_better))
