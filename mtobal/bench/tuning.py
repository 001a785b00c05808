"""Tuning: the same number of trials for every row, and the choice among them on validation alone.

The first trial of a row is the recipe's own setting. Every other one draws a learning rate, up to half an order of
magnitude from the recipe's either way, and values for the options of the row's strategies that are tuned. The
learning rates of a trial are the same for all rows. A row without such options, a single-task baseline too, has as
many trials of learning rates alone. All trials train with one seed, which no run of the table has.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mtobal.bench.plan import Run
from mtobal.bench.recipe import Recipe
from mtobal.bench.records import (
    FAILURE_FILE,
    RESULT_FILE,
    TUNING_FOLDER,
    RunRecord,
    load_failure,
    load_run,
    write_json_atomic,
)
from mtobal.bench.scores import mean_main_metric
from mtobal.data.seeding import derive_seed
from mtobal.errors import UsageError
from mtobal.strategies import available, build
from mtobal.strategies.spec import parse
from mtobal.tasks import Task

CHOICE_FILE = "chosen.json"
SPREAD = 10**0.5
"""By how much a learning rate may be multiplied or divided."""


@dataclass(frozen=True)
class Tuned:
    """An option of a strategy, and the values to draw from: a list, or all between two."""

    strategy: str
    option: str
    values: tuple[Any, ...]
    between: bool

    def draw(self, generator: random.Random) -> Any:
        """Draw a value; between positive numbers a decade or more apart, its logarithm is uniform."""
        if not self.between:
            return generator.choice(self.values)
        low, high = self.values
        if isinstance(low, int) and isinstance(high, int):
            return generator.randint(low, high)
        if low > 0 and high >= 10 * low:
            return _rounded(low * (high / low) ** generator.random())
        return _rounded(low + (high - low) * generator.random())


def parse_tuned(text: str) -> Tuned:
    """Read what to tune, and check that there is such an option.

    Examples
    --------
    >>> parse_tuned("cagrad.c=0.2:0.8").values
    (0.2, 0.8)
    >>> parse_tuned("stch.mu=0.1,1").between
    False
    """
    found = re.fullmatch(r"\s*(\w+)\.(\w+)\s*=(.+)", text)
    if found is None:
        raise UsageError(f"tune: expected strategy.option=low:high or strategy.option=a,b,c, not {text!r}.")
    strategy, option, given = found.groups()
    between = ":" in given
    ((_, options),) = parse(f"{strategy}(values=[{given.replace(':', ',')}])")
    values = tuple(options["values"])
    numbers = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)
    if between and not (len(values) == 2 and numbers and values[0] < values[1]):
        raise UsageError(f"tune: expected two numbers low:high, the first the lower, not {given!r}.")
    if strategy in available() and option not in available()[strategy].options:
        known = ", ".join(available()[strategy].options) or "none"
        raise UsageError(f"tune: strategy {strategy!r} has no option {option!r}; it has {known}.")
    for value in values:
        build({strategy: {option: value}})
    return Tuned(strategy, option, values, between)


def plan_trials(recipe: Recipe, runs: Sequence[Run], chosen: Mapping[str, Any]) -> list[Run]:
    """Return the trials of every row that has no choice yet."""
    tuned = [parse_tuned(text) for text in recipe.tune]
    rows = {run.row: run for run in runs if run.row not in chosen}
    names = {name for run in runs for name, _ in parse(run.strategy or PLACEHOLDER)}
    for each in tuned:
        if each.strategy not in names:
            raise UsageError(f"tune: no row trains {each.strategy!r}; add it to the strategies, or leave it out.")
    return [
        replace(
            run,
            seed=derive_seed("tuning", 0),
            trial=trial,
            learning_rate=_learning_rate(recipe.learning_rate, trial),
            strategy=_spec(run, trial, tuned),
        )
        for trial in range(recipe.trials)
        for run in rows.values()
    ]


PLACEHOLDER = "ew"
"""What stands for the strategy of a baseline where names are collected; it has no options."""


def _learning_rate(own: float, trial: int) -> float:
    generator = random.Random(derive_seed("learning rate", trial))
    return own if trial == 0 else _rounded(own * SPREAD ** generator.uniform(-1, 1))


def _spec(run: Run, trial: int, tuned: Sequence[Tuned]) -> str:
    if trial == 0 or not run.strategy:
        return run.strategy
    parts = dict(parse(run.strategy))
    for each in tuned:
        if each.strategy in parts:
            generator = random.Random(derive_seed(f"{run.row}: {each.strategy}.{each.option}", trial))
            parts[each.strategy] = {**parts[each.strategy], each.option: each.draw(generator)}
    return build(parts).spec


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def load_choices(folder: Path) -> dict[str, Any]:
    """Read what was chosen before, by row."""
    path = folder / TUNING_FOLDER / CHOICE_FILE
    if not path.exists():
        return {}
    try:
        chosen = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UsageError(f"{path}: expected JSON, but it cannot be read ({error}); delete the file.") from error
    if not isinstance(chosen, dict):
        raise UsageError(f"{path}: expected a JSON object by row; delete the file.")
    return chosen


def choose(folder: Path, trials: Sequence[Run], tasks: Sequence[Task]) -> dict[str, Any]:
    """Choose the best finished trial of each row, write the choices down beside those of before, and return all.

    Of equals, the first is chosen. A row none of whose trials finished has no choice.
    """
    chosen = load_choices(folder)
    by_row: dict[str, list[Run]] = {}
    for run in trials:
        by_row.setdefault(run.row, []).append(run)
    for row, runs in by_row.items():
        scored = [
            (_score(load_run(run.folder(folder)), tasks), run)
            for run in runs
            if (run.folder(folder) / RESULT_FILE).exists()
        ]
        if scored:
            score, best = max(scored, key=lambda pair: pair[0])
            chosen[row] = {
                "trial": best.trial,
                "learning_rate": best.learning_rate,
                "spec": best.strategy,
                "validation_score": score,
                "trials": len(runs),
                "failed": len(runs) - len(scored),
            }
    if by_row:
        write_json_atomic(folder / TUNING_FOLDER / CHOICE_FILE, chosen)
    return chosen


def apply_choice(run: Run, choice: Mapping[str, Any]) -> Run:
    """Return the run with the setting that was chosen for its row."""
    return replace(run, strategy=choice["spec"], learning_rate=choice["learning_rate"])


def why_no_choice(folder: Path, trials: Sequence[Run], row: str) -> str:
    """Say why a row has no choice."""
    own = [run for run in trials if run.row == row]
    reasons = [
        load_failure(run.folder(folder)).reason for run in own if (run.folder(folder) / FAILURE_FILE).exists()
    ]
    return f"all {len(own)} trials failed, the first: {reasons[0]}"


def _score(record: RunRecord, tasks: Sequence[Task]) -> float:
    own = [task for task in tasks if task.name in record.tasks]
    epoch = next(epoch for epoch in record.epochs if epoch.epoch == record.selected_epoch)
    return mean_main_metric(own, record.metric_infos, epoch.validation_metrics)
