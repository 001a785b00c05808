"""Estimators of several tasks in the manner of scikit-learn, with the report of every other experiment."""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import yaml
from numpy.typing import ArrayLike, NDArray
from sklearn.base import clone
from sklearn.metrics import r2_score, root_mean_squared_error
from sklearn.model_selection import train_test_split

from mtobal.bench.records import RECIPE_FILE, MetricInfo, RunRecord, run_folder, save_run, write_text_atomic
from mtobal.bench.trainer import hardware
from mtobal.errors import UsageError

SELECTION = "No selection: an estimator has no epochs; metrics are those of the samples that the seed holds out."

Array = NDArray[Any]


class Estimator(Protocol):
    """What predicts samples of several tasks, such as `mtobal.models.r_mtgb.RobustMultiTaskBoosting`."""

    def fit(self, X: ArrayLike, y: ArrayLike, *, tasks: ArrayLike) -> Any:
        """Train on samples whose tasks are labelled."""

    def predict(self, X: ArrayLike, *, tasks: ArrayLike) -> Array:
        """Return a number for each sample."""


def compare_estimators(
    folder: str | Path,
    estimators: Mapping[str, Estimator],
    X: ArrayLike,
    y: ArrayLike,
    *,
    tasks: ArrayLike,
    baseline: Estimator,
    seeds: int = 5,
    held_out: float = 0.25,
) -> None:
    """Train estimators on all tasks together, and one on each task alone; ``mtobal report FOLDER`` compares them.

    A step is a whole training, and parameters are not counted.

    Parameters
    ----------
    folder : path
        Where the runs go; it must be empty or missing.
    estimators : mapping from str to Estimator
        A row of the report each. They are cloned for every run.
    X : array of shape (N, P)
    y : array of shape (N,)
    tasks : array of shape (N,)
        The task label of each sample.
    baseline : Estimator
        What is trained on each task alone.
    seeds : int
        How many splits to repeat all with. A parameter of an estimator that is called ``seed`` is set too.
    held_out : float
        The share of each task's samples that is tested on.

    Raises
    ------
    UsageError
        Fewer than two tasks, no estimator, or a folder that is in use.

    Examples
    --------
    >>> import tempfile, numpy as np
    >>> from mtobal.models.r_mtgb import RobustMultiTaskBoosting
    >>> inputs = np.random.default_rng(0).normal(size=(80, 2))
    >>> rows = {"r_mtgb": RobustMultiTaskBoosting(meta_trees=5)}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     compare_estimators(
    ...         folder, rows, inputs, inputs[:, 0], tasks=np.arange(80) % 2, baseline=rows["r_mtgb"], seeds=1
    ...     )
    ...     print(sorted(path.name for path in Path(folder).iterdir()))
    ['r_mtgb', 'recipe.yaml', 'single(0)', 'single(1)']
    """
    folder, inputs, targets, labels = Path(folder), np.asarray(X), np.asarray(y), np.asarray(tasks)
    names = tuple(map(str, np.unique(labels).tolist()))
    if len(names) < 2 or not estimators:
        raise UsageError(
            f"expected an estimator and samples of two tasks or more, not {len(estimators)} estimators and "
            f"{len(names)} tasks."
        )
    if folder.is_dir() and any(folder.iterdir()):
        raise UsageError(f"{folder}: expected an empty folder for these runs; choose another.")
    folder.mkdir(parents=True, exist_ok=True)
    recipe = {"title": "Estimators of several tasks", "strategies": list(estimators), "seeds": seeds}
    write_text_atomic(folder / RECIPE_FILE, yaml.safe_dump(recipe, sort_keys=False))
    of_task = labels.astype(str)
    for seed in range(seeds):
        train, test = train_test_split(
            np.arange(len(labels)), test_size=held_out, stratify=of_task, random_state=seed
        )
        rows: dict[str, tuple[Estimator, tuple[str, ...]]] = {
            **{f"single({name})": (baseline, (name,)) for name in names},
            **{row: (estimator, names) for row, estimator in estimators.items()},
        }
        for row, (estimator, its) in rows.items():
            inside = np.isin(of_task, its)
            fitted = clone(estimator)
            if "seed" in fitted.get_params():
                fitted.set_params(seed=seed)
            chosen = train[inside[train]]
            start = time.perf_counter()
            fitted.fit(inputs[chosen], targets[chosen], tasks=of_task[chosen])
            seconds = time.perf_counter() - start
            parts = {name: test[of_task[test] == name] for name in its}
            metrics: dict[str, float] = {}
            for name, part in parts.items():
                found = fitted.predict(inputs[part], tasks=of_task[part])
                metrics[f"{name}/rmse"] = float(root_mean_squared_error(targets[part], found))
                metrics[f"{name}/r2"] = float(r2_score(targets[part], found))
            save_run(
                run_folder(folder, row, seed), _record(row, seed, its, metrics, seconds, len(chosen), estimator)
            )


def _record(
    row: str,
    seed: int,
    tasks: tuple[str, ...],
    metrics: dict[str, float],
    seconds: float,
    samples: int,
    estimator: Any,
) -> RunRecord:
    single = row.startswith("single(")
    return RunRecord(
        row=row,
        kind="single" if single else "multi",
        strategy="" if single else row,
        seed=seed,
        tasks=tasks,
        metric_infos=tuple(
            MetricInfo(f"{task}/{name}", task, name == "r2") for task in tasks for name in ("rmse", "r2")
        ),
        test_metrics=metrics,
        selected_epoch=0,
        selection=SELECTION,
        epochs=(),
        seconds_per_step=seconds,
        steps=1,
        parameters=0,
        versions={
            "python": platform.python_version(),
            **{package: version(package) for package in ("scikit-learn", "numpy", "mtobal")},
        },
        hardware=hardware(torch.device("cpu")),
        config={"estimator": repr(estimator), "samples": samples},
        training_seconds=seconds,
    )
