"""What a run remembers: its epochs, its best weights and its step times, all inside its one checkpoint."""

from __future__ import annotations

import math
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from mtobal.bench import teams
from mtobal.bench.module import MultiTaskModule
from mtobal.bench.records import EpochRecord, columns
from mtobal.bench.scores import mean_main_metric
from mtobal.callbacks import ConflictMonitor, MultiTaskBalancer
from mtobal.gradients import Ranks

WHOLE = "all"
"""The name under which the conflict of all shared parameters together is recorded."""

SELECTION = (
    "The epoch with the best mean over the tasks of each task's main metric on the validation split, a metric "
    "that should fall counting negative; of equals, the first."
)


def averaging(epochs: int) -> str:
    """Return the sentence that says how an average over the last epochs came about."""
    return f"No selection: the mean over the last {epochs} epochs on the test split."


class WholeConflict(ConflictMonitor):
    """Observe all shared parameters as one layer, for a strategy that takes no per-task gradients itself."""

    def __init__(self, every_n_steps: int) -> None:
        super().__init__(every_n_steps, depth=1, log=False)

    def _layer(self, name: str) -> str:
        return WHOLE


class LayerConflict(ConflictMonitor):
    """Observe the layers of the encoder, named as in the model."""

    def __init__(self, every_n_steps: int) -> None:
        super().__init__(every_n_steps, log=False)

    def _layer(self, name: str) -> str:
        return super()._layer(name).removeprefix("model.")


class Recorder(Checkpoint):
    """Record every epoch, keep the best weights, and write the checkpoint from which the run can resume.

    Being a `Checkpoint`, it comes after all other callbacks, so that the file holds what they have become.

    Parameters
    ----------
    path : Path
        The checkpoint, written anew at the end of every epoch.
    balancer : MultiTaskBalancer or None
        Whose task weights to record; None for a single task.
    monitors : sequence of ConflictMonitor
        What else observes the conflict of gradients.
    on_epoch : callable
        Called with the record of every epoch.
    budget_seconds : float, optional
        Stop at the step with which the steps of the run have taken so long.

    Attributes
    ----------
    epochs : list of EpochRecord
        The epochs so far.
    best_epoch : int or None
        The one that `SELECTION` selects.
    best_weights : dict
        The model's weights at the end of that epoch.
    step_seconds : list of float
        Wall time of forward, backward and optimizer of every step.
    training_seconds : float
        Their sum.
    peak_memory_bytes : int or None
        The most that tensors took on a CUDA device during training.
    interrupted : bool
        Whether the user stopped the run.
    """

    def __init__(
        self,
        path: Path,
        balancer: MultiTaskBalancer | None,
        monitors: Sequence[ConflictMonitor],
        on_epoch: Callable[[EpochRecord], None],
        budget_seconds: float | None = None,
    ) -> None:
        self.path = path
        self.balancer = balancer
        self.monitors = monitors
        self.on_epoch = on_epoch
        self.budget_seconds = budget_seconds
        self.epochs: list[EpochRecord] = []
        self.best_epoch: int | None = None
        self.best_score = -math.inf
        self.best_weights: dict[str, Tensor] = {}
        self.step_seconds: list[float] = []
        self.training_seconds = 0.0
        self.peak_memory_bytes: int | None = None
        self.interrupted = False

    @property
    def seconds_per_step(self) -> float:
        """Median wall time of forward, backward and optimizer."""
        return statistics.median(self.step_seconds)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._stop_in_time(trainer)  # a run that was killed after its last step
        for record in self.epochs:  # some loggers begin a file anew
            for logger in trainer.loggers:
                logger.log_metrics(columns(record), step=record.epoch)

    def _stop_in_time(self, trainer: pl.Trainer) -> None:
        # The clocks of a team differ, and all of it must stop at the same step.
        if self.budget_seconds is not None and teams.from_first(self.training_seconds) >= self.budget_seconds:
            trainer.should_stop = True

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._step_start = _now(pl_module.device)
        if batch_idx == 0:
            if pl_module.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(pl_module.device)
            self._epoch_start = self._step_start
            self._first_step = trainer.global_step
            self._conflict: list[float] = []
            self._losses: defaultdict[str, list[Tensor]] = defaultdict(list)
            self._weights: defaultdict[str, list[float]] = defaultdict(list)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.step_seconds.append(_now(pl_module.device) - self._step_start)
        self.training_seconds += self.step_seconds[-1]
        self._stop_in_time(trainer)
        for task, loss in (outputs or {}).get("losses", {}).items():
            if loss is not None:
                self._losses[task].append(loss.detach())
        if self.balancer is not None and self.balancer.balancer is not None:
            for task, weight in self.balancer.balancer.weights.items():
                self._weights[task].append(weight)
            conflict = self.balancer.balancer.conflict_rate
            if conflict is not None:
                self._conflict.append(conflict)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # An evaluation takes larger batches than training, and its memory is none of the strategy's.
        if pl_module.device.type == "cuda" and trainer.state.fn == TrainerFn.FITTING:
            peak = torch.cuda.max_memory_allocated(pl_module.device)
            self.peak_memory_bytes = max(peak, self.peak_memory_bytes or 0)

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
            conflict=dict(self._observed_conflict()),
        )
        self.epochs.append(record)
        score = mean_main_metric(pl_module.tasks, pl_module.metric_infos, validation_metrics)
        if self.best_epoch is None or score > self.best_score:
            self.best_epoch, self.best_score = record.epoch, score
            self.best_weights = {name: value.cpu().clone() for name, value in pl_module.model.state_dict().items()}
        for logger in trainer.loggers:
            logger.log_metrics(columns(record), step=record.epoch)
        trainer.save_checkpoint(self.path)
        self.on_epoch(record)

    def _observed_conflict(self) -> Iterator[tuple[str, float]]:
        """Go through the mean conflict of the epoch, of the whole first."""
        if self._conflict:
            yield WHOLE, statistics.fmean(self._conflict)
        for monitor in self.monitors:
            layers, steps, rates = monitor.heat_map()
            of_epoch = rates[:, torch.tensor([step >= self._first_step for step in steps], dtype=torch.bool)]
            means = zip(layers, of_epoch.nanmean(dim=1).tolist(), strict=True)
            yield from ((layer, mean) for layer, mean in means if not math.isnan(mean))

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self.interrupted = isinstance(exception, KeyboardInterrupt)

    def state_dict(self) -> dict[str, Any]:
        return {
            "epochs": [asdict(record) for record in self.epochs],
            "best_epoch": self.best_epoch,
            "best_score": self.best_score,
            "best_weights": self.best_weights,
            "step_seconds": self.step_seconds,
            "training_seconds": self.training_seconds,
            "peak_memory_bytes": self.peak_memory_bytes,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.epochs = [EpochRecord(**record) for record in state_dict["epochs"]]
        self.best_epoch = state_dict["best_epoch"]
        self.best_score = state_dict["best_score"]
        self.best_weights = state_dict["best_weights"]
        self.step_seconds = state_dict["step_seconds"]
        self.training_seconds = state_dict["training_seconds"]
        self.peak_memory_bytes = state_dict["peak_memory_bytes"]


def _mean(losses: list[Tensor]) -> float:
    """Return the mean over the steps in which the task had labels, and over the ranks; NaN where it had none."""
    if not losses:
        return math.nan
    mean, ranks = torch.stack(losses).mean(), Ranks.now()
    return float(mean if ranks.size == 1 else ranks.sum(mean) / ranks.size)


def _now(device: torch.device) -> float:
    """Return the clock, once the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
