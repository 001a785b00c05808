"""An experiment: all runs of a recipe in one folder, which a later call completes or extends."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from mtobal import data as data_sets
from mtobal.bench.plan import plan_runs
from mtobal.bench.progress import ExperimentProgress
from mtobal.bench.recipe import Recipe, load_recipe
from mtobal.bench.records import RECIPE_FILE, RESULT_FILE, load_run, run_folder, write_text_atomic
from mtobal.bench.run import execute_run
from mtobal.data import MultiTaskData
from mtobal.errors import UsageError, unknown_name

EXTENSIBLE = ("title", "strategies", "seeds")
"""The keys of a recipe in which a folder may differ from the recipe of a new call."""


def run_experiment(recipe: Recipe, folder: Path, console: Console) -> None:
    """Train every run of a recipe that its folder does not hold yet.

    Finished runs are skipped and an unfinished one resumes at its last checkpoint, so that an experiment that was
    stopped in whatever way ends with the numbers of one that was not. A folder may be extended by strategies and
    seeds; nothing else of its recipe may change.

    Parameters
    ----------
    recipe : Recipe
        What to train.
    folder : Path
        Where the runs go; it is made if there is none.
    console : Console
        Where to show the progress.

    Raises
    ------
    UsageError
        An unknown task, a folder that belongs to another recipe or cannot be written, or a damaged result.
    """
    data = data_sets.load(**recipe.data)
    _check_selection(recipe, data)
    recipe = dataclasses.replace(recipe, tasks=_select_tasks(recipe, data))
    with _writing_to(folder):
        _claim_folder(folder, recipe)
    runs = plan_runs(recipe)
    with ExperimentProgress(console, len(runs), recipe.epochs) as progress:
        for run in runs:
            path = run_folder(folder, run.row, run.seed)
            if (path / RESULT_FILE).exists():
                load_run(path)  # a damaged result is no result
                progress.skip(run)
                continue
            progress.start(run)
            try:
                with _writing_to(path):
                    path.mkdir(parents=True, exist_ok=True)
                    record = execute_run(run, recipe, data, path, progress.epoch, progress.message)
            except UsageError as error:
                raise UsageError(f"{run.row}, seed {run.seed}: {error}") from error
            progress.finish(run, record)


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


def _select_tasks(recipe: Recipe, data: MultiTaskData) -> tuple[str, ...]:
    known = [task.name for task in data.tasks]
    for name in recipe.tasks:
        if name not in known:
            raise unknown_name("task", name, known)
    # In the order of the data set, whatever the order in which they were asked for.
    names = tuple(name for name in known if not recipe.tasks or name in recipe.tasks)
    if len(names) < 2:
        raise UsageError(f"tasks: strategies balance two tasks or more, not {', '.join(names)} alone.")
    return names


def _claim_folder(folder: Path, recipe: Recipe) -> None:
    """Write the recipe into its folder, joined with what the folder already holds."""
    path = folder / RECIPE_FILE
    if path.is_file():
        before = load_recipe(path)
        _check_same(path, before.as_mapping(), recipe.as_mapping())
        recipe = dataclasses.replace(
            recipe,
            strategies=(*before.strategies, *recipe.strategies),
            seeds=max(before.seeds, recipe.seeds),
        )
    elif folder.is_dir() and any(folder.iterdir()):
        raise UsageError(
            f"{folder}: expected an experiment or an empty folder, but there is no {RECIPE_FILE} among its files; "
            "choose another --out."
        )
    folder.mkdir(parents=True, exist_ok=True)
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


@contextmanager
def _writing_to(folder: Path) -> Iterator[None]:
    """Turn a full disk or a folder that refuses files into an error that names it."""
    try:
        yield
    except OSError as error:
        raise UsageError(
            f"cannot write to {error.filename or folder}: {error.strerror or error}; choose another --out."
        ) from error
