"""One run: train, select, test, record."""

from __future__ import annotations

import logging
import os
import platform
import signal
import statistics
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import yaml
from lightning.fabric.utilities.exceptions import MisconfigurationException

from mtobal import models
from mtobal.bench.checkpoint import WholeCheckpoints, is_whole
from mtobal.bench.module import MultiTaskModule
from mtobal.bench.plan import Run
from mtobal.bench.recipe import Recipe
from mtobal.bench.recorder import SELECTION, Recorder, averaging
from mtobal.bench.records import EpochRecord, RunRecord, save_run, write_text_atomic
from mtobal.callbacks import MultiTaskBalancer
from mtobal.data import MultiTaskData, evaluation_loader, training_loader
from mtobal.data.seeding import derive_seed
from mtobal.errors import UsageError
from mtobal.strategies import Strategy, available, build
from mtobal.strategies.spec import parse

CHECKPOINT_FILE = "last.ckpt"
CONFIG_FILE = "config.yaml"


class SeedEpochs(pl.Callback):
    """Seed torch's global generator at the start of every epoch from the run's seed and the epoch alone."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        # Lightning leaves on_train_epoch_start out for the epoch after a resumption.
        if batch_idx == 0:
            torch.manual_seed(derive_seed("epoch", self.seed, trainer.current_epoch))


def execute_run(
    run: Run,
    recipe: Recipe,
    data: MultiTaskData,
    folder: Path,
    on_epoch: Callable[[EpochRecord], None],
    on_message: Callable[[str], None],
) -> RunRecord:
    """Train a run to its end, from its last checkpoint if there is one, and save its record.

    Parameters
    ----------
    run : Run
        What to train.
    recipe : Recipe
        How to train it.
    data : MultiTaskData
        What the recipe's data set holds.
    folder : Path
        The run's own folder; it must exist.
    on_epoch : callable
        Called with the record of every epoch that is trained now.
    on_message : callable
        Called with a line that the user should see.

    Raises
    ------
    KeyboardInterrupt
        The user stopped the run; the next call resumes it.
    """
    config = resolved_config(run, recipe)
    write_text_atomic(folder / CONFIG_FILE, yaml.safe_dump(config, sort_keys=False))
    torch.manual_seed(derive_seed("model", run.seed))
    tasks = [task for task in data.tasks if task.name in run.tasks]
    model = models.build(input_shape=data.input_shape, tasks=tasks, **recipe.model)
    module = MultiTaskModule(
        model,
        tasks,
        recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        decay_epochs=recipe.decay_epochs,
        decay_factor=recipe.decay_factor,
        batch_metrics=recipe.batch_metrics,
    )

    balancer = _balancer(run) if run.kind == "multi" else None
    checkpoint = folder / CHECKPOINT_FILE
    recorder = Recorder(checkpoint, balancer, on_epoch)
    resumes = checkpoint.exists()
    if resumes and not is_whole(checkpoint):
        on_message(f"{checkpoint} is damaged: {run.row}, seed {run.seed} starts anew.")
        resumes = False
    with _quiet_lightning(), _torch_settings(recipe.threads):
        trainer = _trainer(recipe, [SeedEpochs(run.seed), *([balancer] if balancer else []), recorder])
        _fit(trainer, module, recorder, recipe, data, run.seed, checkpoint if resumes else None)
        assert recorder.best_epoch is not None
        if recipe.average_last:
            last = recorder.epochs[-recipe.average_last :]
            selected_epoch, selection = last[-1].epoch, averaging(len(last))
            test_metrics = _average([record.validation_metrics for record in last])
        else:
            selected_epoch, selection = recorder.best_epoch, SELECTION
            module.model.load_state_dict(recorder.best_weights)
            trainer.test(
                module, evaluation_loader(data.test, recipe.evaluation_batch_size, recipe.workers), verbose=False
            )
            _, test_metrics = module.evaluation()
    record = RunRecord(
        row=run.row,
        kind=run.kind,
        strategy=run.strategy,
        seed=run.seed,
        tasks=run.tasks,
        metric_infos=module.metric_infos,
        test_metrics=test_metrics,
        selected_epoch=selected_epoch,
        selection=selection,
        epochs=tuple(recorder.epochs),
        seconds_per_step=recorder.seconds_per_step,
        steps=len(recorder.step_seconds),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        versions=config["versions"],
        hardware={
            "device": _device_name(trainer.strategy.root_device),
            "machine": f"{platform.system()} {platform.machine()}",
            "cores": str(os.cpu_count()),
        },
        config=config,
    )
    save_run(folder, record)
    checkpoint.unlink(missing_ok=True)
    return record


def resolved_config(run: Run, recipe: Recipe) -> dict[str, Any]:
    """Return everything that decides the outcome of a run: the recipe, the run, options by strategy, versions."""
    cards = available()
    return {
        "run": {"row": run.row, "kind": run.kind, "tasks": list(run.tasks), "seed": run.seed},
        "strategies": {
            name: {**cards[name].options, **given} for name, given in (parse(run.strategy) if run.strategy else [])
        },
        "recipe": recipe.as_mapping(),
        "versions": {
            "python": platform.python_version(),
            **{package: version(package) for package in ("torch", "lightning", "torchmetrics", "numpy", "mtobal")},
        },
    }


def _average(metrics: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: statistics.fmean(each[name] for each in metrics) for name in metrics[0]}


def _balancer(run: Run) -> MultiTaskBalancer:
    strategy = build(run.strategy)
    # Strategies draw from generators of their own, whose seed is one of their options: under another seed of the
    # run, they shall draw other numbers too.
    for part in strategy.modules():
        if isinstance(part, Strategy) and part.generator is not None:
            part.generator.manual_seed(derive_seed("strategy", run.seed, part.generator.initial_seed()))
    return MultiTaskBalancer(strategy, log=False)


def _trainer(recipe: Recipe, callbacks: list[pl.Callback]) -> pl.Trainer:
    try:
        return pl.Trainer(
            accelerator=recipe.accelerator,
            devices=1,
            max_epochs=recipe.epochs,
            callbacks=callbacks,
            plugins=[WholeCheckpoints()],
            deterministic="warn",
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
    except MisconfigurationException as error:
        raise UsageError(f"accelerator {recipe.accelerator!r} cannot be used here: {error}") from error


def _fit(
    trainer: pl.Trainer,
    module: MultiTaskModule,
    recorder: Recorder,
    recipe: Recipe,
    data: MultiTaskData,
    seed: int,
    checkpoint: Path | None,
) -> None:
    handler = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit(
            module,
            training_loader(data.train, recipe.batch_size, seed, recipe.workers),
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
def _quiet_lightning() -> Iterator[None]:
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
def _torch_settings(threads: int) -> Iterator[None]:
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
