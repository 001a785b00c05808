"""The commands that train."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtobal.cli.failures import Failures
from mtobal.cli.report import show_report

if TYPE_CHECKING:
    from jsonargparse import Namespace


def bench(options: Namespace) -> None:
    """Train a recipe, and show the report."""
    from mtobal.bench.recipe import load_recipe

    recipe = load_recipe(options.recipe)
    changes: dict[str, Any] = {
        "imports": None if options.imports is None else (*recipe.imports, *split_specs(options.imports)),
        "strategies": None if options.strategies is None else tuple(split_specs(options.strategies)),
        "tasks": None if options.tasks is None else tuple(split_specs(options.tasks)),
        "scalarization": options.scalarization,
        "seeds": options.seeds,
        "epochs": options.epochs,
        "budget": options.budget,
        "devices": options.devices,
        "num_nodes": options.num_nodes,
        "tune": None if options.tune is None else tuple(options.tune),
        "trials": options.trials,
    }
    recipe = dataclasses.replace(recipe, **{key: value for key, value in changes.items() if value is not None})
    # Lightning takes seconds to import; what is wrong with the recipe is told before.
    from rich.console import Console

    from mtobal.bench.experiment import run_experiment
    from mtobal.bench.records import RESULT_FILE
    from mtobal.bench.teams import Node

    folder = Path(options.out or Path("runs") / Path(options.recipe).stem)
    console = Console()
    try:
        failures = run_experiment(
            recipe, folder, console, jobs=options.jobs, launcher=options.launcher, logger=options.logger
        )
    except KeyboardInterrupt:
        print("mtobal: interrupted; the same command goes on after the last finished epoch.", file=sys.stderr)
        raise
    if Node.here(recipe).number > 0:
        return  # the first of the machines reports
    if any(folder.glob(f"*/seed-*/{RESULT_FILE}")):
        show_report(folder, console)
    if failures:
        raise Failures(f"{failure.row}, seed {failure.seed} failed: {failure.reason}" for failure in failures)


def contributions(options: Namespace) -> None:
    """Measure what tasks do for each other."""
    from mtobal.bench.recipe import load_recipe

    recipe = load_recipe(options.recipe)
    changes: dict[str, Any] = {
        "tasks": None if options.tasks is None else tuple(split_specs(options.tasks)),
        "seeds": options.seeds,
        "epochs": options.epochs,
    }
    recipe = dataclasses.replace(recipe, **{key: value for key, value in changes.items() if value is not None})
    from rich.console import Console

    from mtobal.bench.contributions import measure_contributions
    from mtobal.bench.folder import writing_to
    from mtobal.report.contributions import build_contributions, console_tables

    folder = Path(options.out or Path("runs") / f"{Path(options.recipe).stem}-contributions")
    shares = {name: options[name] for name in ("mini", "large") if options[name] is not None}
    console = Console()
    try:
        measurement = measure_contributions(recipe, folder, console, **shares)
    except KeyboardInterrupt:
        print("mtobal: interrupted; the same command goes on after the last finished epoch.", file=sys.stderr)
        raise
    with writing_to(folder):
        page = build_contributions(folder, measurement)
    weights = measurement.specs()["static"]
    lines = [
        *measurement.notes,
        f'Train with these weights: mtobal bench {options.recipe} --strategies "ew,{weights}"',
        f"For a recipe: {folder / 'weights.yaml'}",
        f"Page: {page}",
    ]
    for table in console_tables(measurement):
        console.print(table)
    for line in lines:
        console.print(line, soft_wrap=True, markup=False, highlight=False)


def split_specs(text: str) -> list[str]:
    """Split at the commas outside of brackets.

    Examples
    --------
    >>> split_specs("ew, uw+cagrad(c=0.4, scale=sum), static(weights=[1, 2])")
    ['ew', 'uw+cagrad(c=0.4, scale=sum)', 'static(weights=[1, 2])']
    """
    parts = [""]
    depth = 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts if part.strip()]
