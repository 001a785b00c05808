"""What the data of each task does for every other task, measured by small models (VisATB)."""

from __future__ import annotations

import dataclasses
import functools
import math
import statistics
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.console import Console
from torch import Tensor

from mtobal import data as data_sets
from mtobal.bench.folder import claimed, writing_to
from mtobal.bench.launch import Event, Failed, Finished, Setting, perform
from mtobal.bench.plan import Run, select_tasks
from mtobal.bench.progress import ExperimentProgress
from mtobal.bench.recipe import Recipe
from mtobal.bench.records import RESULT_FILE, MetricInfo, RunRecord, load_run, run_folder, write_text_atomic
from mtobal.bench.subsets import LabelSubsets
from mtobal.bench.trainer import check_accelerator
from mtobal.errors import UsageError
from mtobal.strategies.validation.visatb import (
    TaskWeights,
    contributions,
    difficulties,
    mean_contributions,
    visatb_weights,
)

MINI_SHARE, LARGE_SHARE = 1 / 32, 1 / 4
"""How much of its labels a task keeps where it is not the one that is measured, and where it is, as for M3IT."""

ADVISED_SAMPLES, ADVISED_STEPS = 1000, 100
"""What the authors advise at least for a mini subset, and for the training on them."""

ADVISED_WEIGHTS = 0.5, 2.0

MEASUREMENT_FILE = "measurement.yaml"
EXTENSIBLE = ("title", "imports", "strategies", "seeds")
"""The keys of a recipe in which a later call may differ."""

STRATEGY = "ew"
MINI_ROW = "mini"


@dataclass(frozen=True)
class Estimate:
    """What a table of scores says; each tensor is of shape (N,), the matrix of shape (N, N)."""

    matrix: Tensor
    outward: Tensor
    inward: Tensor
    difficulty: Tensor
    weights: TaskWeights


@dataclass(frozen=True)
class Measurement:
    """The scores of the N + 1 small models under S seeds, and what follows from them.

    Attributes
    ----------
    recipe : Recipe
        How the models were trained.
    tasks : tuple of str
        The N tasks.
    metrics : tuple of MetricInfo
        The main metric of each task, which is its score.
    shares : tuple of float
        Of the labels that a task keeps in its mini and in its large subset.
    samples : tuple of tuple of int
        How many samples that is, for each task.
    runs : tuple of RunRecord
        The trainings.
    mini : Tensor of shape (S, N)
        Validation scores of the model trained on mini subsets of all tasks.
    large : Tensor of shape (S, N, N)
        Those of the model trained on a large subset of task i and mini subsets of the others, in row i.
    on_test : bool
        Whether the data set has no validation split of its own, so that these are scores on the test split.
    """

    recipe: Recipe
    tasks: tuple[str, ...]
    metrics: tuple[MetricInfo, ...]
    shares: tuple[float, float]
    samples: tuple[tuple[int, int], ...]
    runs: tuple[RunRecord, ...]
    mini: Tensor
    large: Tensor
    on_test: bool

    @functools.cached_property
    def estimate(self) -> Estimate:
        """What the mean scores over the seeds say."""
        return self._estimate(self.mini.mean(0), self.large.mean(0))

    @functools.cached_property
    def by_seed(self) -> tuple[Estimate, ...]:
        """What the scores of each seed say; NaN where a task gained nothing from its own labels."""
        estimates = []
        for mini, large in zip(self.mini, self.large, strict=True):
            gained = self._gains(mini, large) > 0
            # A column that cannot be told must not look like one of zeros.
            estimates.append(self._estimate(mini, large.where(gained, math.nan)))
        return tuple(estimates)

    @property
    def notes(self) -> list[str]:
        """What to know before these weights are believed."""
        notes = []
        fewest = min(mini for mini, _ in self.samples)
        if fewest < ADVISED_SAMPLES:
            notes.append(
                f"The smallest mini subset has {fewest} samples; the authors advise {ADVISED_SAMPLES} or more."
            )
        steps = min(run.steps for run in self.runs)
        if steps <= ADVISED_STEPS:
            notes.append(f"The shortest training had {steps} steps; the authors advise more than {ADVISED_STEPS}.")
        if len(self.mini) == 1:
            notes.append("One seed does not tell how far these numbers would differ under another.")
        elif unclear := self._unclear():
            others = len(self.tasks) * (len(self.tasks) - 1)
            notes.append(f"{unclear} of {others} contributions are smaller than their spread over seeds.")
        if self.on_test:
            notes.append("The validation split is the test split: weights from here have seen the test data.")
        weights = self.estimate.weights.final
        low, high = ADVISED_WEIGHTS
        if weights.min() < low or weights.max() > high:
            notes.append(
                f"A weight lies outside {low} to {high}; the authors advise the lowest temperature of visatb "
                "at which none does."
            )
        return notes

    def specs(self) -> dict[str, str]:
        """Return what `mtobal bench` takes: the weights alone, and the scores that they come from."""
        weights = ", ".join(
            f"{task!r}: {weight:.4f}"
            for task, weight in zip(self.tasks, self.estimate.weights.final.tolist(), strict=True)
        )
        mini, large = self.mini.mean(0), self.large.mean(0)
        rows = ", ".join(f"{task!r}: {self._row(large[i])}" for i, task in enumerate(self.tasks))
        falling = [info.task for info in self.metrics if not info.higher_is_better]
        tail = f", lower_is_better={falling!r}" if falling else ""
        return {
            "static": f"static(weights={{{weights}}})",
            "visatb": f"visatb(scores={{{rows}}}, mini={self._row(mini)}{tail})",
        }

    def check(self) -> None:
        """Refuse scores from which no contribution follows."""
        mini, large = self.mini.mean(0), self.large.mean(0)
        gains = self._gains(mini, large)
        for j, info in enumerate(self.metrics):
            if min(mini[j], large[:, j].min()) < 0:
                raise UsageError(
                    f"task {info.task!r}: the score {info.name} is negative, and the difficulty is a ratio of "
                    "scores; give the task a main metric from zero upwards."
                )
            if not gains[j] > 0:
                raise UsageError(
                    f"task {info.task!r}: its own labels did not improve its score {info.name} (mini "
                    f"{mini[j]:.4g}, large {large[j, j]:.4g}), so what others contribute cannot be set beside it; "
                    "train longer or on more (--epochs, --large), or over more --seeds."
                )

    def spread(self, quantity: Callable[[Estimate], Tensor]) -> Tensor | None:
        """Return the sample standard deviation over seeds.

        It is NaN where a seed has no answer; None for a single seed.
        """
        by_seed = [quantity(estimate) for estimate in self.by_seed]
        return torch.stack(by_seed).std(0) if len(by_seed) > 1 else None

    def _unclear(self) -> int:
        spread = self.spread(lambda estimate: estimate.matrix)
        assert spread is not None
        # A spread that is not known is as good as a large one; on the diagonal it is zero.
        return int((~(self.estimate.matrix.abs() >= spread)).sum())

    @property
    def _upward(self) -> Tensor:
        return torch.tensor([info.higher_is_better for info in self.metrics])

    def _gains(self, mini: Tensor, large: Tensor) -> Tensor:
        """Return how much better the score of each task becomes with its own large subset."""
        gains = large.diagonal() - mini
        return gains.where(self._upward, -gains)

    def _estimate(self, mini: Tensor, large: Tensor) -> Estimate:
        matrix = contributions(large, mini)
        outward, inward = mean_contributions(matrix)
        difficulty = difficulties(large.diagonal(), mini, self._upward)
        return Estimate(matrix, outward, inward, difficulty, visatb_weights(outward, inward, difficulty))

    def _row(self, scores: Tensor) -> str:
        return f"{{{', '.join(f'{t!r}: {v:.6g}' for t, v in zip(self.tasks, scores.tolist(), strict=True))}}}"


def measure_contributions(
    recipe: Recipe, folder: Path, console: Console, mini: float = MINI_SHARE, large: float = LARGE_SHARE
) -> Measurement:
    """Train the N + 1 small models of VisATB that a folder does not hold yet, and compare their scores.

    One model is trained on mini subsets of the labels of all tasks; then, for each task, one on a large subset
    of its labels and the mini subsets of all others. Finished trainings are skipped and an unfinished one resumes.

    Parameters
    ----------
    recipe : Recipe
        How to train; its strategies are left aside, for all models have equal weights.
    folder : Path
        Where the trainings go; it is made if there is none.
    console : Console
        Where to show the progress.
    mini, large : float
        Shares of the labelled training samples of a task.

    Returns
    -------
    Measurement

    Raises
    ------
    UsageError
        Fewer than two tasks, shares that are none, a folder of something else, a training that failed, or
        scores from which no contribution follows.
    """
    if not 0 < mini < large <= 1:
        raise UsageError(f"expected shares 0 < mini < large <= 1, not mini {mini:g} and large {large:g}.")
    check_accelerator(recipe)
    data = data_sets.load(**recipe.data)
    names = select_tasks(recipe, data)
    tasks = [task for task in data.tasks if task.name in names]
    recipe = dataclasses.replace(recipe, tasks=names, strategies=(STRATEGY,))
    subsets = LabelSubsets(data.train, tasks)
    plan = [
        (Run(row, "multi", STRATEGY, names, seed), {task: large if task == measured else mini for task in names})
        for seed in range(recipe.seeds)
        for row, measured in [(MINI_ROW, ""), *((f"large({task})", task) for task in names)]
    ]
    setting = Setting(recipe, folder)
    records: list[RunRecord] = []
    with ExitStack() as stack:
        with writing_to(folder):
            stack.enter_context(claimed(folder, "a measurement", MEASUREMENT_FILE))
            _write_what_is_measured(folder, recipe, (mini, large))
        progress = stack.enter_context(ExperimentProgress(console, len(plan), recipe.epochs))

        def report(event: Event) -> None:
            progress.show(event)
            if isinstance(event, Finished):
                records.append(event.record)
            elif isinstance(event, Failed):
                raise UsageError(f"{event.run.row}, seed {event.run.seed}: {event.failure.reason}")

        for run, shares in plan:
            path = run_folder(folder, run.row, run.seed)
            if (path / RESULT_FILE).exists():
                records.append(load_run(path))
                progress.skip(run)
            else:
                subset = dataclasses.replace(data, train=subsets.draw(shares, run.seed))
                perform(run, setting, subset, report)

    mains = [f"{task.name}/{task.main_metric}" for task in tasks]
    infos = {info.name: info for info in records[0].metric_infos}
    scores = torch.tensor([_scores(record, mains, recipe.average_last) for record in records], dtype=torch.float64)
    scores = scores.view(recipe.seeds, len(names) + 1, len(names))
    measurement = Measurement(
        recipe=recipe,
        tasks=names,
        metrics=tuple(infos[name] for name in mains),
        shares=(mini, large),
        samples=tuple((subsets.count(task, mini), subsets.count(task, large)) for task in names),
        runs=tuple(records),
        mini=scores[:, 0],
        large=scores[:, 1:],
        on_test=data.validation is data.test,
    )
    measurement.check()
    return measurement


def _scores(record: RunRecord, metrics: list[str], average_last: int) -> list[float]:
    """Return the validation scores of a model at its selected epoch, or over its last epochs."""
    epochs = record.epochs[-average_last:] if average_last else [record.epochs[record.selected_epoch]]
    scores = [statistics.fmean(epoch.validation_metrics[name] for epoch in epochs) for name in metrics]
    for name, score in zip(metrics, scores, strict=True):
        if not math.isfinite(score):
            raise UsageError(
                f"{record.row}, seed {record.seed}: the validation score {name} is {score}; train longer "
                "(--epochs)."
            )
    return scores


def _write_what_is_measured(folder: Path, recipe: Recipe, shares: tuple[float, float]) -> None:
    """Write it into its folder, unless the folder belongs to another measurement."""
    path = folder / MEASUREMENT_FILE
    kept = {key: value for key, value in recipe.as_mapping().items() if key not in EXTENSIBLE}
    now: dict[str, Any] = {"mini": shares[0], "large": shares[1], **kept}
    if path.is_file():
        before = _load_mapping(path)
        # A key that a recipe did not have when this was written has the default that means the same.
        changed = [key for key, value in before.items() if value != now.get(key)]
        if changed:
            raise UsageError(
                f"{path} belongs to a measurement with another {', '.join(changed)}; choose another --out."
            )
    write_text_atomic(path, yaml.safe_dump(now, sort_keys=False))


def _load_mapping(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(
            f"{path}: this is no YAML: {' '.join(str(error).split())}; choose another --out."
        ) from error
    if not isinstance(content, dict):
        raise UsageError(f"{path}: expected a mapping, not {content!r}; choose another --out.")
    return content
