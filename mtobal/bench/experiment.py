"""An experiment: all runs of a recipe in one folder, which a later call completes or extends."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from mtobal import data as data_sets
from mtobal import models
from mtobal.bench.folder import claimed, writing_to
from mtobal.bench.launch import Event, Failed, Launcher, Setting, failed, one_after_another
from mtobal.bench.loggers import check_logger
from mtobal.bench.on_ray import on_ray
from mtobal.bench.plan import PACE, Run, plan_runs, select_tasks, static_weights
from mtobal.bench.processes import follow, in_processes
from mtobal.bench.progress import ExperimentProgress
from mtobal.bench.recipe import Recipe, load_recipe
from mtobal.bench.records import RECIPE_FILE, RESULT_FILE, Failure, load_run, write_text_atomic
from mtobal.bench.teams import Meeting, Node, on_cuda
from mtobal.bench.trainer import check_accelerator
from mtobal.bench.tuning import apply_choice, choose, load_choices, plan_trials, why_no_choice
from mtobal.data import MultiTaskData
from mtobal.errors import UsageError

EXTENSIBLE = ("title", "imports", "strategies", "scalarization", "seeds")
"""The keys of a recipe in which a folder may differ from the recipe of a new call."""


def run_experiment(
    recipe: Recipe,
    folder: Path,
    console: Console,
    *,
    jobs: int = 1,
    launcher: Literal["local", "ray"] = "local",
    logger: str | None = None,
) -> tuple[Failure, ...]:
    """Train every run of a recipe that its folder does not hold yet.

    Finished runs are skipped and an unfinished one resumes at its last checkpoint, so that an experiment that was
    stopped in whatever way ends with the numbers of one that was not. A folder may be extended by strategies,
    static weights, seeds and imports; nothing else of its recipe may change. A run that fails leaves its reason,
    and the others go on; the next call tries it again.

    Parameters
    ----------
    recipe : Recipe
        What to train.
    folder : Path
        Where the runs go; it is made if there is none.
    console : Console
        Where to show the progress.
    jobs : int
        How many runs this machine trains at a time.
    launcher : {"local", "ray"}
        Whether this machine trains the runs or a Ray cluster.
    logger : str, optional
        Where the numbers of every epoch go too: csv, tensorboard, wandb or mlflow.

    Returns
    -------
    tuple of Failure
        The runs of this recipe that failed now; none on a machine that is not the first of several.

    Raises
    ------
    UsageError
        An unknown task, a folder that belongs to another recipe, is in use or cannot be written, or a damaged
        result.
    """
    if recipe.budget == "time" and (jobs > 1 or launcher == "ray"):
        raise UsageError(
            "a budget of time needs runs that have the machine to themselves: leave out --jobs and --launcher."
        )
    if recipe.ranks > 1:
        _check_devices(recipe, jobs, launcher)
    if logger is not None:
        check_logger(logger)
    if launcher == "local":
        check_accelerator(recipe)
    data = data_sets.load(**recipe.data)
    _check_selection(recipe, data)
    tasks = select_tasks(recipe, data)
    # A model that these data do not suit would stop every run.
    models.build(input_shape=data.input_shape, tasks=[t for t in data.tasks if t.name in tasks], **recipe.model)
    sweep = static_weights(recipe.scalarization, len(tasks))
    pace = [PACE] if recipe.budget == "time" else []
    recipe = dataclasses.replace(recipe, tasks=tasks, strategies=(*pace, *recipe.strategies, *sweep))
    runs = plan_runs(recipe)
    setting = Setting(recipe, folder, logger)
    meeting = Meeting(recipe) if recipe.ranks > 1 else None
    if meeting is not None and meeting.node.number > 0:
        follow(setting, meeting)
        return ()
    trials = plan_trials(recipe, runs, load_choices(folder))
    launch: Launcher
    if launcher == "ray":
        launch = on_ray
    else:
        in_others = jobs > 1 or meeting is not None
        launch = partial(in_processes, jobs, meeting=meeting) if in_others else partial(one_after_another, data)
    failures: list[Failure] = []
    with ExitStack() as stack:
        with writing_to(folder):
            stack.enter_context(claimed(folder, "an experiment", RECIPE_FILE))
            _write_recipe(folder, recipe)
        if meeting is not None:
            stack.callback(meeting.end)
        progress = stack.enter_context(ExperimentProgress(console, len(trials) + len(runs), recipe.epochs))

        def report(event: Event) -> None:
            progress.show(event)
            if isinstance(event, Failed) and event.run.trial is None:
                failures.append(event.failure)

        if left := _unfinished(trials, folder, progress):
            launch(left, setting, report)
        if recipe.trials:
            chosen = choose(folder, trials, data.tasks)
            for run in [run for run in runs if run.row not in chosen]:
                report(failed(run, setting, why_no_choice(folder, trials, run.row)))
            runs = [apply_choice(run, chosen[run.row]) for run in runs if run.row in chosen]
        if left := _unfinished(runs, folder, progress):
            launch(left, setting, report)
    return tuple(failures)


def _check_devices(recipe: Recipe, jobs: int, launcher: str) -> None:
    """Refuse to share out devices among runs that take all of them."""
    if launcher == "ray":
        raise UsageError("--devices and --num-nodes do not go with --launcher ray, which gives a run one device.")
    if jobs > 1 and (recipe.num_nodes > 1 or on_cuda(recipe)):
        raise UsageError(
            "--jobs does not go with several devices, of which every run takes all; leave out --jobs."
        )
    Node.here(recipe)


def _unfinished(runs: Sequence[Run], folder: Path, progress: ExperimentProgress) -> list[Run]:
    left = []
    for run in runs:
        if (run.folder(folder) / RESULT_FILE).exists():
            load_run(run.folder(folder))  # a damaged result is no result
            progress.skip(run)
        else:
            left.append(run)
    return left


def _check_selection(recipe: Recipe, data: MultiTaskData) -> None:
    """Refuse to choose an epoch on the test split, and to average on a split that is not the test split."""
    if recipe.average_last and data.validation is not data.test:
        raise UsageError(
            f"recipe: average_last is {recipe.average_last}, but data set {recipe.data['name']!r} has a "
            "validation split of its own; set average_last to 0, or let the data set hold nothing out."
        )
    if not recipe.average_last and data.validation is data.test:
        raise UsageError(
            f"recipe: the validation split of data set {recipe.data['name']!r} is its test split, on which no "
            "epoch may be chosen; set average_last to a number of last epochs, or let the data set hold some out."
        )


def _write_recipe(folder: Path, recipe: Recipe) -> None:
    """Write the recipe into its folder, joined with what the folder already holds."""
    path = folder / RECIPE_FILE
    if path.is_file():
        before = load_recipe(path)
        _check_same(path, before.as_mapping(), recipe.as_mapping())
        recipe = dataclasses.replace(
            recipe,
            imports=(*before.imports, *recipe.imports),
            strategies=(*before.strategies, *recipe.strategies),
            scalarization=max(before.scalarization, recipe.scalarization),
            seeds=max(before.seeds, recipe.seeds),
        )
    write_text_atomic(path, recipe.as_yaml())


def _check_same(path: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    differences = [
        f"{key} is {old!r} there and {new!r} now"
        for key, old, new in _flat_differences(before, now)
        if key not in EXTENSIBLE
    ]
    if differences:
        raise UsageError(
            f"{path} belongs to an experiment with another recipe: {'; '.join(differences)}. Choose another --out."
        )


def _flat_differences(
    before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    for key in {**before, **now}:
        old, new = before.get(key), now.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from _flat_differences(old, new, f"{prefix}{key}.")
        elif old != new:
            yield f"{prefix}{key}", old, new
