"""From a recipe to its runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mtobal.bench.recipe import Recipe


@dataclass(frozen=True)
class Run:
    """One training: a row of the report under one seed. A baseline trains one task, with no strategy."""

    row: str
    kind: Literal["multi", "single"]
    strategy: str
    tasks: tuple[str, ...]
    seed: int


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
    return [
        run
        for seed in range(recipe.seeds)
        for run in [
            *(Run(f"single({task})", "single", "", (task,), seed) for task in recipe.tasks),
            *(Run(spec, "multi", spec, recipe.tasks, seed) for spec in recipe.strategies),
        ]
    ]
