"""Small experiments to report on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from mtobal.bench.records import EpochRecord, MetricInfo, RunRecord, run_folder, save_run

SELECTION = "The epoch with the lowest mean validation loss."

Values = Mapping[str, Sequence[Sequence[float]]]

# Baseline: left (0.7 + 0.9) / 2 = 0.8, right 0.5.
# ew: +10 % and 0 %, then 0 % and -10 %; uw: +5 % and +10 %, then +10 % and +5 %.
BY_HAND: Values = {
    "single(left)": [[0.7], [0.9]],
    "single(right)": [[0.5], [0.5]],
    "ew": [[0.88, 0.5], [0.8, 0.45]],
    "uw": [[0.84, 0.55], [0.88, 0.525]],
}
SECONDS = {"ew": 0.010, "uw": 0.012, "single(left)": 0.006, "single(right)": 0.007}


def make_run(row: str, seed: int, tasks: Sequence[str], values: Sequence[float], seconds: float) -> RunRecord:
    """Make a run of two epochs: one accuracy a task, loss 1/(epoch+1), weights 1, 2, 3... for the tasks."""
    return RunRecord(
        row=row,
        kind="single" if row.startswith("single(") else "multi",
        strategy="ew" if row.startswith("single(") else row,
        seed=seed,
        tasks=tuple(tasks),
        metric_infos=tuple(MetricInfo(f"{task}/accuracy", task, True) for task in tasks),
        test_metrics={f"{task}/accuracy": value for task, value in zip(tasks, values, strict=True)},
        selected_epoch=1,
        selection=SELECTION,
        epochs=tuple(
            EpochRecord(
                epoch=epoch,
                train_losses=dict.fromkeys(tasks, 1 / (epoch + 1)),
                validation_losses=dict.fromkeys(tasks, 2 / (epoch + 1) + seed),
                validation_metrics=dict(zip((f"{task}/accuracy" for task in tasks), values, strict=True)),
                weights={task: float(place + 1) for place, task in enumerate(tasks)},
                seconds=1.5,
            )
            for epoch in range(2)
        ),
        seconds_per_step=seconds,
        steps=20,
        parameters=1000,
        versions={"mtobal": "0.1.0", "torch": "2.13.0"},
        hardware={"cpu": "2 cores"},
        config={},
    )


def write_experiment(
    folder: Path,
    values: Values,
    tasks: Sequence[str] = ("left", "right"),
    seconds: Mapping[str, float] | None = None,
    unfinished: Sequence[str] = (),
    **recipe: Any,
) -> Path:
    """Write an experiment from the test values by row and seed; rows ``single(<task>)`` are baselines."""
    for row, by_seed in values.items():
        own = [row.removeprefix("single(")[:-1]] if row.startswith("single(") else tasks
        for seed, metrics in enumerate(by_seed):
            run = make_run(row, seed, own, metrics, (seconds or {}).get(row, 0.01))
            save_run(run_folder(folder, row, seed), run)
    for row in unfinished:
        run_folder(folder, row, 0).mkdir(parents=True)
    strategies = [row for row in values if not row.startswith("single(")]
    text = yaml.safe_dump({"title": "digits", "strategies": strategies, **recipe}, sort_keys=False)
    (folder / "recipe.yaml").write_text(text, encoding="utf-8")
    return folder


def write_large_experiment(folder: Path, rows: int = 40, seeds: int = 5, epochs: int = 100) -> Path:
    """Write noisy strategies and a sweep of static weights on three tasks with two metrics each.

    The rows differ in truth by how far they are along the list; two more diverge or stop early.
    """
    generator = np.random.default_rng(0)
    tasks = ("segmentation", "depth", "normals")
    infos = tuple(
        MetricInfo(f"{task}/{name}", task, name == "accuracy") for task in tasks for name in ("accuracy", "error")
    )
    names = [f"single({task})" for task in tasks]
    names += ["ew", *(f"static(weights=[1, {place}, {6 - place}])" for place in range(1, 6))]
    names += [f"method_{place:02}" for place in range(rows - 6)]
    for place, row in enumerate(names):
        single = row.startswith("single(")
        own = (row[7:-1],) if single else tasks
        for seed in range(seeds):
            shift = 0.0 if single else 0.002 * (place - 20)
            values = {
                info.name: (0.7 if info.higher_is_better else 0.3)
                + (shift if info.higher_is_better else -shift)
                + float(generator.normal(0, 0.01))
                for info in infos
                if info.task in own
            }
            save_run(
                run_folder(folder, row, seed),
                RunRecord(
                    row=row,
                    kind="single" if single else "multi",
                    strategy="" if single else row,
                    seed=seed,
                    tasks=own,
                    metric_infos=tuple(info for info in infos if info.task in own),
                    test_metrics=values,
                    selected_epoch=epochs - 1,
                    selection=SELECTION,
                    epochs=tuple(
                        EpochRecord(
                            epoch=epoch,
                            train_losses=dict.fromkeys(own, 2 / (epoch + 2) + shift),
                            validation_losses=dict.fromkeys(own, 2.2 / (epoch + 2) + shift),
                            validation_metrics={name: value * epoch / epochs for name, value in values.items()},
                            weights={} if single else dict(zip(own, generator.uniform(0, 1, 3), strict=True)),
                            seconds=2.0,
                        )
                        for epoch in range(epochs)
                    ),
                    seconds_per_step=0.01 * (1 + place / 10),
                    steps=1000,
                    parameters=2_800_000,
                    versions={"mtobal": "0.1.0", "torch": "2.13.0"},
                    hardware={"cpu": "2 cores"},
                    config={},
                ),
            )
    recipe = {"title": "three dense tasks", "strategies": names[3:], "epochs": epochs}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    return folder
