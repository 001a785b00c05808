"""Lightning's trainer as every run uses it: quiet, deterministic, and resumable at every epoch."""

from __future__ import annotations

import logging
import os
import platform
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins.environments import LightningEnvironment  # type: ignore[attr-defined]
from lightning.pytorch.strategies import DDPStrategy

from mtobal.bench import teams
from mtobal.bench.checkpoint import WholeCheckpoints
from mtobal.bench.module import MultiTaskModule
from mtobal.bench.recipe import Recipe
from mtobal.bench.recorder import Recorder
from mtobal.data import MultiTaskData, evaluation_loader, training_loader
from mtobal.data.seeding import derive_seed
from mtobal.errors import UsageError


class SeedEpochs(pl.Callback):
    """Seed torch's global generator at the start of every epoch from the run's seed and the epoch alone.

    The processes of a team draw different numbers, for they have different samples.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        # Lightning leaves on_train_epoch_start out for the epoch after a resumption.
        if batch_idx == 0:
            others = (teams.rank(),) if teams.rank() else ()
            torch.manual_seed(derive_seed("epoch", self.seed, trainer.current_epoch, *others))


def make_trainer(
    recipe: Recipe, callbacks: list[pl.Callback], logger: Logger | None = None, *, timed: bool = False
) -> pl.Trainer:
    """Return a trainer that writes nothing of its own; a timed one leaves it to the recorder when to stop.

    In a team of processes it trains by DDP, and elsewhere on one device.

    Raises
    ------
    UsageError
        The machine lacks the accelerator.
    """
    in_team = teams.size() > 1
    # In some batches a task has no sample, so that its own parameters are left out on all devices.
    ddp = DDPStrategy(cluster_environment=LightningEnvironment(), find_unused_parameters=True)
    try:
        return pl.Trainer(
            accelerator=recipe.accelerator,
            devices=recipe.devices if in_team else 1,
            num_nodes=recipe.num_nodes if in_team else 1,
            strategy=ddp if in_team else "auto",
            use_distributed_sampler=False,  # the loader knows which share of a batch is whose
            max_epochs=-1 if timed else recipe.epochs,
            callbacks=callbacks,
            plugins=[WholeCheckpoints()],
            deterministic="warn",
            logger=logger or False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
    except MisconfigurationException as error:
        raise UsageError(f"accelerator {recipe.accelerator!r} cannot be used here: {error}") from error


def check_accelerator(recipe: Recipe) -> None:
    """Refuse a recipe none of whose runs can be trained on this machine."""
    with quiet_lightning(), torch_settings(recipe.threads):
        trainer = make_trainer(recipe, [])
    kind = trainer.strategy.root_device.type
    available = (os.cpu_count() or 1) if kind == "cpu" else trainer.accelerator.auto_device_count()
    if recipe.devices > available:
        unit = "cores" if kind == "cpu" else f"{kind} devices"
        raise UsageError(
            f"--devices {recipe.devices} are more than this machine has {unit}, which is {available}."
        )


def fit(
    trainer: pl.Trainer,
    module: MultiTaskModule,
    recorder: Recorder,
    recipe: Recipe,
    data: MultiTaskData,
    seed: int,
    checkpoint: Path | None,
) -> None:
    """Train to the end, from a checkpoint if there is one; Ctrl-C raises as anywhere else."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit(
            module,
            training_loader(
                data.train, recipe.batch_size, seed, recipe.workers, rank=teams.rank(), ranks=teams.size()
            ),
            evaluation_loader(data.validation, recipe.evaluation_batch_size, recipe.workers),
            ckpt_path=checkpoint,
        )
    except SystemExit:  # what Lightning makes of a KeyboardInterrupt, ignoring the signal from then on
        signal.signal(signal.SIGINT, handler)
        if not recorder.interrupted:
            raise
    if recorder.interrupted:
        raise KeyboardInterrupt


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Keep Lightning's advice to itself: its user wrote neither this module nor these loaders."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"lightning\.")
        # The order of its sums would matter only if the windows that it undoes overlapped; SegNet's do not.
        warnings.filterwarnings("ignore", message="max_unpooling2d_forward_out")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


@contextmanager
def torch_settings(threads: int) -> Iterator[None]:
    """Set the number of threads; put it and what Lightning sets for determinism back afterwards."""
    before = torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)


def hardware(device: torch.device) -> dict[str, str]:
    """Say on what a run was trained."""
    return {
        "device": _device_name(device),
        "machine": f"{platform.system()} {platform.machine()}",
        "cores": str(os.cpu_count()),
    }


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        return _processor_name()
    return str(device)


def _processor_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not a Linux
        return platform.processor() or "cpu"
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "cpu")
