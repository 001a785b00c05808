"""From a recipe to its runs."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mtobal.bench.recipe import Recipe
from mtobal.bench.records import TUNING_FOLDER, run_folder
from mtobal.data import MultiTaskData
from mtobal.errors import UsageError, unknown_name

PACE = "ew"
"""The row that has the recipe's epochs under a budget of time."""


@dataclass(frozen=True)
class Run:
    """One training: a row of the report under one seed. A baseline trains one task, with no strategy.

    `learning_rate` is set where it was tuned, and `trial` in a run that is a trial of the tuning.
    """

    row: str
    kind: Literal["multi", "single"]
    strategy: str
    tasks: tuple[str, ...]
    seed: int
    learning_rate: float | None = None
    trial: int | None = None

    @property
    def label(self) -> str:
        """What a line of progress calls it."""
        return f"{self.row}, seed {self.seed}" if self.trial is None else f"{self.row}, trial {self.trial}"

    def folder(self, experiment: Path) -> Path:
        """Return where it leaves its results."""
        if self.trial is None:
            return run_folder(experiment, self.row, self.seed)
        return run_folder(experiment / TUNING_FOLDER, self.row, self.seed).with_name(f"trial-{self.trial}")


def plan_runs(recipe: Recipe) -> list[Run]:
    """Return the runs of a recipe whose tasks are known, seed after seed, so that early results make full tables.

    Examples
    --------
    >>> from dataclasses import replace
    >>> from mtobal.bench.recipe import load_recipe
    >>> recipe = replace(load_recipe("digits"), tasks=("left", "right"), strategies=("uw+pcgrad",), seeds=1)
    >>> [run.row for run in plan_runs(recipe)]
    ['single(left)', 'single(right)', 'uw+pcgrad']
    """
    # With a budget of time, the first of a seed is the one that the others keep pace with.
    specs = sorted(recipe.strategies, key=PACE.__ne__) if recipe.budget == "time" else recipe.strategies
    return [
        run
        for seed in range(recipe.seeds)
        for run in [
            *(Run(f"single({task})", "single", "", (task,), seed) for task in recipe.tasks),
            *(Run(spec, "multi", spec, recipe.tasks, seed) for spec in specs),
        ]
    ]


def static_weights(number: int, tasks: int) -> list[str]:
    """Return the rows of a sweep: equal weights, and so many others drawn uniformly from the simplex.

    The weights of a row sum to the number of tasks, as equal ones do. A longer sweep begins with the shorter one.

    Examples
    --------
    >>> static_weights(2, 3)
    ['ew', 'static(weights=[1.459, 1.113, 0.428])', 'static(weights=[0.586, 1.399, 1.015])']
    >>> static_weights(0, 3)
    []
    """
    if not number:
        return []
    generator = random.Random(0)
    rows = ["ew"]
    while len(rows) <= number:
        draws = [-math.log(1.0 - generator.random()) for _ in range(tasks)]
        weights = [round(tasks * draw / sum(draws), 3) for draw in draws]
        largest = weights.index(max(weights))  # it takes what rounding has left over
        weights[largest] = round(weights[largest] + tasks - sum(weights), 3)
        row = f"static(weights={weights})"
        if row not in rows:  # of two tasks, rounding makes some draws equal
            rows.append(row)
    return rows


def select_tasks(recipe: Recipe, data: MultiTaskData) -> tuple[str, ...]:
    """Return the tasks of a recipe, or all those of its data set, in the order of the data set."""
    known = [task.name for task in data.tasks]
    for name in recipe.tasks:
        if name not in known:
            raise unknown_name("task", name, known)
    names = tuple(name for name in known if not recipe.tasks or name in recipe.tasks)
    if len(names) < 2:
        raise UsageError(f"tasks: it takes two tasks or more to balance or compare, not {', '.join(names)} alone.")
    return names
