"""One run: train, select, test, record."""

from __future__ import annotations

import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import yaml
from lightning.pytorch.loggers import Logger

from mtobal import models
from mtobal.bench import teams
from mtobal.bench.checkpoint import is_whole
from mtobal.bench.module import MultiTaskModule
from mtobal.bench.plan import Run
from mtobal.bench.predictions import predict, save_predictions
from mtobal.bench.recipe import Recipe
from mtobal.bench.recorder import SELECTION, LayerConflict, Recorder, WholeConflict, averaging
from mtobal.bench.records import EpochRecord, RunRecord, save_run, write_text_atomic
from mtobal.bench.trainer import SeedEpochs, fit, hardware, make_trainer, quiet_lightning, torch_settings
from mtobal.callbacks import ConflictMonitor, MultiTaskBalancer
from mtobal.data import MultiTaskData, evaluation_loader
from mtobal.data.seeding import derive_seed
from mtobal.errors import UsageError
from mtobal.strategies import Strategy, available, build
from mtobal.strategies.spec import parse

CHECKPOINT_FILE = "last.ckpt"
CONFIG_FILE = "config.yaml"


def execute_run(
    run: Run,
    recipe: Recipe,
    data: MultiTaskData,
    folder: Path,
    on_epoch: Callable[[EpochRecord], None],
    on_message: Callable[[str], None],
    *,
    pace: RunRecord | None = None,
    logger: Logger | None = None,
) -> RunRecord:
    """Train a run to its end, from its last checkpoint if there is one, and save its record.

    Of a team of processes, every one calls it, and the first one alone writes.

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
    pace : RunRecord, optional
        Train as many seconds as this run has taken, in place of the recipe's epochs.
    logger : Logger, optional
        Where the numbers of every epoch go too.

    Raises
    ------
    UsageError
        Wrong use by the recipe, or a pace that was measured on another machine.
    KeyboardInterrupt
        The user stopped the run; the next call resumes it.
    """
    config = resolved_config(run, recipe)
    writes = teams.rank() == 0
    if writes:
        write_text_atomic(folder / CONFIG_FILE, yaml.safe_dump(config, sort_keys=False))
    torch.manual_seed(derive_seed("model", run.seed))
    tasks = [task for task in data.tasks if task.name in run.tasks]
    model = models.build(input_shape=data.input_shape, tasks=tasks, **recipe.model)
    module = MultiTaskModule(
        model,
        tasks,
        recipe.learning_rate if run.learning_rate is None else run.learning_rate,
        weight_decay=recipe.weight_decay,
        decay_epochs=recipe.decay_epochs,
        decay_factor=recipe.decay_factor,
        decay_patience=recipe.decay_patience,
        batch_metrics=recipe.batch_metrics,
    )

    balancer = _balancer(run) if run.kind == "multi" else None
    checkpoint = folder / CHECKPOINT_FILE
    monitors = _monitors(balancer, recipe.conflict_every)
    budget = None if pace is None else pace.training_seconds
    recorder = Recorder(checkpoint, balancer, monitors, on_epoch, budget)
    resumes = checkpoint.exists()
    if resumes and not is_whole(checkpoint):
        on_message(f"{checkpoint} is damaged: {run.row}, seed {run.seed} starts anew.")
        resumes = False
    with quiet_lightning(), torch_settings(recipe.threads):
        callbacks: list[pl.Callback] = [
            SeedEpochs(run.seed),
            *([balancer] if balancer else []),
            *monitors,
            recorder,
        ]
        trainer = make_trainer(recipe, callbacks, logger, timed=budget is not None)
        machine = hardware(trainer.strategy.root_device)
        if pace is not None and pace.hardware != machine:
            raise UsageError(
                f"expected the machine on which {pace.row}, seed {pace.seed} was timed ({pace.hardware}), not "
                f"{machine}: delete that run and train it again here."
            )
        fit(trainer, module, recorder, recipe, data, run.seed, checkpoint if resumes else None)
        assert recorder.best_epoch is not None
        if recipe.average_last:
            last = recorder.epochs[-recipe.average_last :]
            selected_epoch, selection = last[-1].epoch, averaging(len(last))
            test_metrics = _average([record.validation_metrics for record in last])
        else:
            selected_epoch, selection = recorder.best_epoch, SELECTION
            module.model.load_state_dict(recorder.best_weights)
            test_metrics = {} if run.trial is not None else _test(trainer, module, recipe, data)
        predictions = predict(module, data.test) if run.trial is None and writes else None
    if predictions is not None:
        save_predictions(folder, predictions)
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
        hardware=machine,
        config=config,
        peak_memory_bytes=recorder.peak_memory_bytes,
        training_seconds=recorder.training_seconds,
        budget_seconds=budget,
    )
    if logger is not None:
        logger.log_hyperparams(config)
        logger.log_metrics({f"test/{name}": value for name, value in test_metrics.items()})
        logger.finalize("success")
    if writes:
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
        "tuned": None if run.learning_rate is None else {"learning_rate": run.learning_rate, "spec": run.strategy},
        "recipe": recipe.as_mapping(),
        "versions": {
            "python": platform.python_version(),
            **{package: version(package) for package in ("torch", "lightning", "torchmetrics", "numpy", "mtobal")},
        },
    }


def _test(trainer: pl.Trainer, module: MultiTaskModule, recipe: Recipe, data: MultiTaskData) -> dict[str, float]:
    loader = evaluation_loader(data.test, recipe.evaluation_batch_size, recipe.workers)
    trainer.test(module, loader, verbose=False)
    return module.evaluation()[1]


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


def _monitors(balancer: MultiTaskBalancer | None, every: int) -> list[ConflictMonitor]:
    if balancer is None or not every:
        return []
    looks_itself = balancer.strategy.aggregation is not None
    return [*([] if looks_itself else [WholeConflict(every)]), LayerConflict(every)]
