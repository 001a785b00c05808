"""What a run remembers: its epochs, its best weights and its step times, all inside its one checkpoint."""

from __future__ import annotations

import math
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor

from mtobal.bench.module import MultiTaskModule
from mtobal.bench.records import EpochRecord
from mtobal.callbacks import MultiTaskBalancer

SELECTION = (
    "The epoch with the best mean over the tasks of each task's main metric on the validation split, a metric "
    "that should fall counting negative; of equals, the first."
)


def averaging(epochs: int) -> str:
    """Return the sentence that says how an average over the last epochs came about."""
    return f"No selection: the mean over the last {epochs} epochs on the test split."


class Recorder(Checkpoint):
    """Record every epoch, keep the best weights, and write the checkpoint from which the run can resume.

    Being a `Checkpoint`, it comes after all other callbacks, so that the file holds what they have become.

    Parameters
    ----------
    path : Path
        The checkpoint, written anew at the end of every epoch.
    balancer : MultiTaskBalancer or None
        Whose task weights to record; None for a single task.
    on_epoch : callable
        Called with the record of every epoch.

    Attributes
    ----------
    epochs : list of EpochRecord
        The epochs so far.
    best_epoch : int or None
        The one that `SELECTION` selects.
    best_weights : dict
        The model's weights at the end of that epoch.
    interrupted : bool
        Whether the user stopped the run.
    """

    def __init__(
        self, path: Path, balancer: MultiTaskBalancer | None, on_epoch: Callable[[EpochRecord], None]
    ) -> None:
        self.path = path
        self.balancer = balancer
        self.on_epoch = on_epoch
        self.epochs: list[EpochRecord] = []
        self.best_epoch: int | None = None
        self.best_score = -math.inf
        self.best_weights: dict[str, Tensor] = {}
        self.step_seconds: list[float] = []
        self.interrupted = False

    @property
    def seconds_per_step(self) -> float:
        """Median wall time of forward, backward and optimizer."""
        return statistics.median(self.step_seconds)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._step_start = _now(pl_module.device)
        if batch_idx == 0:
            self._epoch_start = self._step_start
            self._losses: defaultdict[str, list[Tensor]] = defaultdict(list)
            self._weights: defaultdict[str, list[float]] = defaultdict(list)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.step_seconds.append(_now(pl_module.device) - self._step_start)
        for task, loss in (outputs or {}).get("losses", {}).items():
            if loss is not None:
                self._losses[task].append(loss.detach())
        if self.balancer is not None and self.balancer.balancer is not None:
            for task, weight in self.balancer.balancer.weights.items():
                self._weights[task].append(weight)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, MultiTaskModule)
        validation_losses, validation_metrics = pl_module.evaluation()
        record = EpochRecord(
            epoch=trainer.current_epoch,
            train_losses={task.name: _mean(self._losses[task.name]) for task in pl_module.tasks},
            validation_losses=validation_losses,
            validation_metrics=validation_metrics,
            weights={task: statistics.fmean(weights) for task, weights in self._weights.items()},
            seconds=_now(pl_module.device) - self._epoch_start,
        )
        self.epochs.append(record)
        score = selection_score(pl_module, validation_metrics)
        if self.best_epoch is None or score > self.best_score:
            self.best_epoch, self.best_score = record.epoch, score
            self.best_weights = {name: value.cpu().clone() for name, value in pl_module.model.state_dict().items()}
        trainer.save_checkpoint(self.path)
        self.on_epoch(record)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self.interrupted = isinstance(exception, KeyboardInterrupt)

    def state_dict(self) -> dict[str, Any]:
        return {
            "epochs": [asdict(record) for record in self.epochs],
            "best_epoch": self.best_epoch,
            "best_score": self.best_score,
            "best_weights": self.best_weights,
            "step_seconds": self.step_seconds,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.epochs = [EpochRecord(**record) for record in state_dict["epochs"]]
        self.best_epoch = state_dict["best_epoch"]
        self.best_score = state_dict["best_score"]
        self.best_weights = state_dict["best_weights"]
        self.step_seconds = state_dict["step_seconds"]


def selection_score(module: MultiTaskModule, metrics: dict[str, float]) -> float:
    """Return the mean of the tasks' main metrics, each signed so that higher is better; minus infinity for NaN."""
    higher_is_better = {info.name: info.higher_is_better for info in module.metric_infos}
    names = [f"{task.name}/{task.main_metric}" for task in module.tasks]
    score = statistics.fmean(metrics[name] if higher_is_better[name] else -metrics[name] for name in names)
    return -math.inf if math.isnan(score) else score


def _mean(losses: list[Tensor]) -> float:
    """Return the mean over the steps in which the task had labels; NaN where it had none."""
    return float(torch.stack(losses).mean()) if losses else math.nan


def _now(device: torch.device) -> float:
    """Return the clock, once the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
