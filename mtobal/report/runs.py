"""What was run: the budget, what each row took of it, what tuning chose, what failed, how gradients conflicted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mtobal.bench.records import Failure, RunRecord
from mtobal.report.table import REFERENCE, Statistic, Summary, SummaryRow

WHOLE = "all"
"""Under what name a record holds the conflict of all shared parameters together."""


def budget(summary: Summary) -> str:
    """Say in a sentence what every run was given."""
    runs = summary.experiment.runs
    given = sorted({run.budget_seconds for run in runs if run.budget_seconds is not None})
    if not given:
        return f"{_range([len(run.epochs) for run in runs])} epochs for every run."
    seconds = f"{given[0]:.1f}" if given[0] == given[-1] else f"{given[0]:.1f} to {given[-1]:.1f}"
    return f"{seconds} s of training steps for every run; evaluations do not count."


def epochs_trained(summary: Summary, row: SummaryRow) -> float:
    """Return the passes through the training split, a mean over the row's runs; the last may be cut short."""
    reference = next((run for run in summary.experiment.runs if run.row == REFERENCE), None)
    return float(np.mean([_epochs(run, reference) for run in row.runs]))


def _epochs(run: RunRecord, reference: RunRecord | None) -> float:
    """Count the epochs of a run by time in steps, of which the reference tells how many make one."""
    if run.budget_seconds is None or reference is None or not reference.steps:
        return len(run.epochs)
    return run.steps * len(reference.epochs) / reference.steps


def tuned_settings(summary: Summary) -> list[tuple[str, str]]:
    """Return what tuning chose, by row."""
    found: dict[str, dict[str, None]] = {}
    for run in summary.experiment.runs:
        if tuned := run.config.get("tuned"):
            text = ", ".join(f"{name}: {value}" for name, value in tuned.items())
            found.setdefault(run.row, {})[text] = None
    return [(row, "; ".join(settings)) for row, settings in found.items()]


@dataclass(frozen=True)
class Failed:
    """Runs of one row that failed for the same reason, with the first traceback."""

    name: str
    reason: str
    traceback: str


def failed(summary: Summary) -> list[Failed]:
    """Return why runs failed, with the seeds of a row together."""
    groups: dict[tuple[str, str], list[Failure]] = {}
    for failure in summary.experiment.failures:
        groups.setdefault((failure.row, failure.reason), []).append(failure)
    return [
        Failed(
            f"{row}, seed{'s' if len(group) > 1 else ''} {', '.join(str(each.seed) for each in group)}",
            reason,
            group[0].traceback,
        )
        for (row, reason), group in groups.items()
    ]


def conflicts(runs: Sequence[RunRecord]) -> dict[str, Statistic]:
    """Return the conflict by layer, of the whole first: the mean over a run's epochs, over seeds."""
    found: dict[str, list[float]] = {}
    for run in runs:
        for layer in dict.fromkeys(layer for epoch in run.epochs for layer in epoch.conflict):
            found.setdefault(layer, []).append(conflict(run, layer))
    return {layer: Statistic(tuple(found[layer])) for layer in sorted(found, key=lambda layer: layer != WHOLE)}


def conflict(run: RunRecord, layer: str = WHOLE) -> float:
    """Return the mean conflict over the epochs in which it was observed; NaN where it never was."""
    values = [epoch.conflict[layer] for epoch in run.epochs if layer in epoch.conflict]
    return float(np.mean(values)) if values else float("nan")


def _range(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low} to {high}"
