"""The measured contributions of tasks to each other: files beside the trainings, and tables for the console."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mtobal.bench.records import finite_or_null, write_text_atomic

if TYPE_CHECKING:
    from rich.table import Table

    from mtobal.bench.contributions import Estimate, Measurement

FORM = 1
MISSING = "—"
COLUMNS = {
    "outward": "gives",
    "inward": "receives",
    "difficulty": "difficulty",
    "weight_outward": "by giving",
    "weight_inward": "by receiving",
    "weight_difficulty": "by difficulty",
    "weight_final": "weight",
}
"""The quantities that each task has one of, and their headings."""

IN_CONSOLE = ("outward", "inward", "difficulty", "weight_final")
MOST_TASKS = 4  # whose matrix a terminal of 80 columns has room for


def build_contributions(folder: Path, measurement: Measurement) -> Path:
    """Write ``contributions.html``, ``.json``, ``.csv`` and ``weights.yaml`` beside the trainings.

    Parameters
    ----------
    folder : Path
        The folder of the measurement.
    measurement : Measurement
        From `measure_contributions`.

    Returns
    -------
    Path
        The page: one file that needs no network.
    """
    import yaml

    specs = list(measurement.specs().values())
    faces = {
        "contributions.json": _document(measurement),
        "contributions.csv": _table(measurement),
        "contributions.html": _page(measurement),
        "weights.yaml": yaml.safe_dump({"strategies": specs}, sort_keys=False, width=10_000),
    }
    for name, text in faces.items():
        write_text_atomic(folder / name, text)
    return folder / "contributions.html"


def console_tables(measurement: Measurement) -> list[Table]:
    """Lay out the matrix, if a terminal has room for it, and what follows from it."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    def table(title: str, first: str, headings: Sequence[str]) -> Table:
        made = Table(
            title=Text(title), title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False
        )
        made.add_column(Text(first), overflow="fold")
        for heading in headings:
            made.add_column(Text(heading), justify="right", overflow="fold", min_width=12)
        return made

    tables = []
    if len(measurement.tasks) <= MOST_TASKS:
        matrix = table("Contribution of row to column", "from \\ to", measurement.tasks)
        for task, cells in zip(measurement.tasks, matrix_cells(measurement), strict=True):
            matrix.add_row(Text(task), *cells)
        tables.append(matrix)
    per_task = table("What follows for each task", "task", [COLUMNS[name] for name in IN_CONSOLE])
    shown = [list(COLUMNS).index(name) for name in IN_CONSOLE]
    for task, cells in zip(measurement.tasks, task_cells(measurement), strict=True):
        per_task.add_row(Text(task), *(cells[place] for place in shown))
    return [*tables, per_task]


def matrix_cells(measurement: Measurement) -> list[list[str]]:
    """Write the contribution matrix, with its spread over seeds."""
    return _written(measurement.estimate.matrix, measurement.spread(lambda estimate: estimate.matrix))


def task_cells(measurement: Measurement) -> list[list[str]]:
    """Write for each task the quantities of `COLUMNS`, with their spread over seeds."""

    def columns(estimate: Estimate) -> Tensor:
        return torch.stack(list(_by_task(estimate).values()), dim=1)

    return _written(columns(measurement.estimate), measurement.spread(columns))


def _written(values: Tensor, spread: Tensor | None) -> list[list[str]]:
    def cell(i: int, j: int) -> str:
        text = f"{round(float(values[i, j]), 3) + 0.0:.3f}"  # which makes -0.000 a plain zero
        if spread is None:
            return text
        return f"{text} ± {MISSING if spread[i, j].isnan() else f'{float(spread[i, j]):.3f}'}"

    return [[cell(i, j) for j in range(values.shape[1])] for i in range(len(values))]


def _by_task(estimate: Estimate) -> dict[str, Tensor]:
    weights = dataclasses.asdict(estimate.weights)
    return {
        "outward": estimate.outward,
        "inward": estimate.inward,
        "difficulty": estimate.difficulty,
        **{f"weight_{name}": values for name, values in weights.items()},
    }


def _document(measurement: Measurement) -> str:
    tasks = measurement.tasks

    def row(values: Tensor) -> dict[str, float]:
        return dict(zip(tasks, values.tolist(), strict=True))

    def square(values: Tensor) -> dict[str, dict[str, float]]:
        return {task: row(each) for task, each in zip(tasks, values, strict=True)}

    def told(mini: Tensor, large: Tensor, estimate: Estimate) -> dict[str, Any]:
        return {
            "scores": {"mini": row(mini), "large": square(large)},
            "contributions": square(estimate.matrix),
            "outward": row(estimate.outward),
            "inward": row(estimate.inward),
            "difficulty": row(estimate.difficulty),
            "weights": {name: row(values) for name, values in dataclasses.asdict(estimate.weights).items()},
        }

    content = {
        "form": FORM,
        "title": measurement.recipe.title,
        "notes": measurement.notes,
        "specs": measurement.specs(),
        **told(measurement.mini.mean(0), measurement.large.mean(0), measurement.estimate),
        "by_seed": [
            told(*each) for each in zip(measurement.mini, measurement.large, measurement.by_seed, strict=True)
        ],
        "shares": dict(zip(("mini", "large"), measurement.shares, strict=True)),
        "samples": {
            task: dict(zip(("mini", "large"), counts, strict=True))
            for task, counts in zip(tasks, measurement.samples, strict=True)
        },
        "metrics": [dataclasses.asdict(info) for info in measurement.metrics],
        "recipe": measurement.recipe.as_mapping(),
        "runs": [
            {
                "row": run.row,
                "seed": run.seed,
                "steps": run.steps,
                "selected_epoch": run.selected_epoch,
                "seconds": sum(epoch.seconds for epoch in run.epochs),
                "versions": run.versions,
                "hardware": run.hardware,
            }
            for run in measurement.runs
        ],
    }
    return json.dumps(finite_or_null(content), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _table(measurement: Measurement) -> str:
    """Write one number a line; the seed is empty for what follows from the mean scores."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["seed", "quantity", "from", "to", "value"])
    mean = (measurement.mini.mean(0), measurement.large.mean(0), measurement.estimate)
    by_seed = zip(measurement.mini, measurement.large, measurement.by_seed, strict=True)
    for seed, (mini, large, estimate) in [("", mean), *((str(n), each) for n, each in enumerate(by_seed))]:
        for quantity, source, target, value in _lines(measurement.tasks, mini, large, estimate):
            writer.writerow([seed, quantity, source, target, "" if math.isnan(value) else repr(value)])
    return buffer.getvalue()


def _lines(
    tasks: tuple[str, ...], mini: Tensor, large: Tensor, estimate: Estimate
) -> Iterator[tuple[str, str, str, float]]:
    for j, target in enumerate(tasks):
        yield "score", "", target, float(mini[j])
    for name, square in (("score", large), ("contribution", estimate.matrix)):
        for i, source in enumerate(tasks):
            for j, target in enumerate(tasks):
                yield name, source, target, float(square[i, j])
    for name, values in _by_task(estimate).items():
        for j, target in enumerate(tasks):
            yield name, "", target, float(values[j])


def _page(measurement: Measurement) -> str:
    """Render the page. Styles, scripts and data are inside; everything that comes from a run is escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from plotly.offline import get_plotlyjs

    environment = Environment(
        loader=PackageLoader("mtobal.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates = files("mtobal.report") / "templates"
    estimate = measurement.estimate
    spread = measurement.spread(lambda each: each.difficulty)
    charts = {
        "tasks": measurement.tasks,
        "matrix": estimate.matrix.tolist(),
        "cells": matrix_cells(measurement),
        "difficulty": estimate.difficulty.tolist(),
        "spread": None if spread is None else spread.tolist(),
    }
    return environment.get_template("contributions.html.j2").render(
        measurement=measurement,
        columns=COLUMNS,
        matrix=matrix_cells(measurement),
        per_task=task_cells(measurement),
        scores=[("mini", measurement.mini.mean(0).tolist())]
        + [
            (f"large({task})", row)
            for task, row in zip(measurement.tasks, measurement.large.mean(0).tolist(), strict=True)
        ],
        versions=measurement.runs[0].versions,
        hardware=measurement.runs[0].hardware,
        charts=finite_or_null(charts),
        style=templates.joinpath("report.css").read_text("utf-8"),
        script=templates.joinpath("contributions.js").read_text("utf-8"),
        plotly=get_plotlyjs(),
    )
