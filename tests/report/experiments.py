"""Small experiments to report on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from mtobal.bench.predictions import Predictions, save_predictions
from mtobal.bench.records import (
    EpochRecord,
    Failure,
    MetricInfo,
    RunRecord,
    run_folder,
    save_failure,
    save_run,
)

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
    failures: Sequence[Failure] = (),
    conflict: Mapping[str, float] | None = None,
    also: Mapping[str, Any] | None = None,
    **recipe: Any,
) -> Path:
    """Write an experiment from the test values by row and seed; rows ``single(<task>)`` are baselines.

    Every multi-task epoch has the conflict, and every run what `also` says of it by the names of its fields.
    """
    for row, by_seed in values.items():
        own = [row.removeprefix("single(")[:-1]] if row.startswith("single(") else tasks
        for seed, metrics in enumerate(by_seed):
            run = replace(make_run(row, seed, own, metrics, (seconds or {}).get(row, 0.01)), **(also or {}))
            if conflict and run.kind == "multi":
                epochs = tuple(replace(epoch, conflict=dict(conflict)) for epoch in run.epochs)
                run = replace(run, epochs=epochs)
            save_run(run_folder(folder, row, seed), run)
    for row in unfinished:
        run_folder(folder, row, 0).mkdir(parents=True)
    for failure in failures:
        failed = run_folder(folder, failure.row, failure.seed)
        failed.mkdir(parents=True)
        save_failure(failed, failure)
    strategies = [row for row in values if not row.startswith("single(")]
    text = yaml.safe_dump({"title": "digits", "strategies": strategies, **recipe}, sort_keys=False)
    (folder / "recipe.yaml").write_text(text, encoding="utf-8")
    return folder


def write_predictions(
    folder: Path, tasks: Sequence[str], noise: float = 0.0, size: tuple[int, int] = (72, 96)
) -> None:
    """Write what a run predicts of two images of a room with a ball: the truth, and noise on it."""
    generator = np.random.default_rng(0)
    y, x = np.mgrid[-1 : 1 : size[0] * 1j, -1.3 : 1.3 : size[1] * 1j]
    ball = x**2 + y**2 < 0.5
    height = np.sqrt(np.where(ball, 0.5 - x**2 - y**2, 0.5))
    normals = np.where(ball, np.stack([x, y, height]) / np.sqrt(0.5), np.array([0, 0, 1.0])[:, None, None])
    stripes = ((x + 1.3) * 5).astype(np.int16) % 13
    labels = np.where(ball, 1, stripes)
    labels[:4] = -1
    depth = np.where(ball, 2 - height, 3 + y)[None]
    depth[:, -4:] = 0

    def twice(array: Any) -> Any:
        return np.stack([array, array[..., ::-1]])

    truth = {
        "segmentation": twice(labels).astype(np.int16),
        "depth": twice(depth).astype(np.float32),
        "normals": twice(normals).astype(np.float32),
    }
    wrong = generator.random(truth["segmentation"].shape) < noise
    outputs = {
        "segmentation": np.where(wrong, generator.integers(0, 13, wrong.shape), truth["segmentation"].clip(0)),
        **{task: truth[task] + generator.normal(0, noise, truth[task].shape) for task in ("depth", "normals")},
    }
    save_predictions(
        folder,
        Predictions(
            inputs=twice(np.stack([height, (labels + 1) / 14, y / 2])).astype(np.float32),
            targets={task: truth[task] for task in tasks},
            outputs={task: outputs[task].astype(truth[task].dtype) for task in tasks},
        ),
    )


def write_large_experiment(folder: Path, rows: int = 40, seeds: int = 5, epochs: int = 100) -> Path:
    """Write noisy strategies and a sweep of twelve static weights on three dense tasks with two metrics each.

    The rows differ in truth by how far they are along the list. Every run has predicted the first images, all have
    their memory recorded, all but baselines their conflict by layer, and one strategy failed under each seed.
    """
    generator = np.random.default_rng(0)
    tasks = ("segmentation", "depth", "normals")
    infos = tuple(
        MetricInfo(f"{task}/{name}", task, name == "accuracy") for task in tasks for name in ("accuracy", "error")
    )
    names = [f"single({task})" for task in tasks]
    names += ["ew", *(f"static(weights=[1, {place}, {13 - place}])" for place in range(1, 13))]
    names += [f"method_{place:02}" for place in range(rows - 13)]
    layers = ("all", "encoder.stem", "encoder.layer1", "encoder.layer2", "encoder.layer3")
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
                            conflict={}
                            if single
                            else {layer: place % 10 / 12 + float(generator.uniform(0, 0.2)) for layer in layers},
                        )
                        for epoch in range(epochs)
                    ),
                    seconds_per_step=0.01 * (1 + place / 10),
                    steps=1000,
                    parameters=2_800_000,
                    versions={"mtobal": "0.1.0", "torch": "2.13.0"},
                    hardware={"cpu": "2 cores"},
                    config={},
                    peak_memory_bytes=int(2**30 * (1 + place / 50)),
                    training_seconds=180.0,
                ),
            )
        write_predictions(run_folder(folder, row, 0), own, noise=0.004 * place)
    for seed in range(seeds):
        failure = Failure("mgda", seed, "RuntimeError: CUDA out of memory", "Traceback (most recent call last):\n")
        failed = run_folder(folder, "mgda", seed)
        failed.mkdir(parents=True)
        save_failure(failed, failure)
    recipe = {"title": "three dense tasks", "strategies": names[3:], "epochs": epochs}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    return folder
