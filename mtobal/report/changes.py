"""What changed from one experiment to another beyond what seeds do: yesterday and today, or two machines."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mtobal.bench.records import RunRecord
from mtobal.errors import UsageError
from mtobal.report.comparison import Verdict, judged
from mtobal.report.statistics import (
    FEWEST_SEEDS,
    Difference,
    holm,
    paired_difference,
    unpaired_difference,
)
from mtobal.report.summary import delta_m_by_seed
from mtobal.report.table import Summary

SECONDS = "seconds per step"
DELTA = "delta_m by seed"
BySeed = Mapping[int, float]


@dataclass(frozen=True)
class Change:
    """One quantity of one row before and after; `adjusted` is corrected for all quantities of all rows."""

    row: str
    quantity: str
    before: float
    after: float
    difference: Difference
    adjusted: float | None
    verdict: Verdict


@dataclass(frozen=True)
class Changes:
    """Two experiments side by side. `settings` are the lines in which what was run differs."""

    changes: tuple[Change, ...]
    settings: tuple[tuple[str, str, str], ...]
    only_before: tuple[str, ...]
    only_after: tuple[str, ...]
    identical: int
    common: int

    @property
    def shown(self) -> tuple[Change, ...]:
        """The changes beyond noise."""
        return tuple(change for change in self.changes if change.verdict in ("better", "worse"))

    @property
    def headline(self) -> str:
        """Say what the two folders show, and no more."""
        tested = sum(change.adjusted is not None for change in self.changes)
        runs = f"{self.identical} of the {self.common} runs that both have give identical test metrics."
        if not tested:
            most = max(change.difference.n for change in self.changes)
            if most < FEWEST_SEEDS:
                seeds = f"{most} seed" if most == 1 else f"{most} seeds"
                return f"With {seeds} no change can be shown; it takes {FEWEST_SEEDS} or more. {runs}"
            return f"No change can be tested: the values are not finite, or do not vary over seeds. {runs}"
        if not self.shown:
            return f"Nothing changed beyond noise in {tested} comparisons of a row's quantity. {runs}"
        words = [f"{change.row}: {change.quantity} {change.verdict}" for change in self.shown[:4]]
        more = f" and {len(self.shown) - 4} more" if len(self.shown) > 4 else ""
        return f"{len(self.shown)} of {tested} comparisons changed beyond noise ({'; '.join(words)}{more}). {runs}"


def find_changes(before: Summary, after: Summary) -> Changes:
    """Compare the rows that both experiments have, in every metric, the scores and the time of a step.

    Seeds that both have are compared with each other, where there are three or more of them; otherwise the two
    sets of seeds are (Welch's t-test). All p-values are corrected together (Holm). ``delta_m`` is taken
    against the baseline of each seed, not against their mean, whose error all seeds of a folder would share.

    Raises
    ------
    UsageError
        If the two have no row with a metric in common.
    """
    old, new = _quantities(before), _quantities(after)
    upward = {column.key: column.higher_is_better for summary in (before, after) for column in summary.columns}
    keys = [key for key in old if key in new]
    if not any(quantity != SECONDS for _, quantity in keys):
        raise UsageError(
            f"{before.experiment.folder} and {after.experiment.folder}: expected rows and metrics that both have, "
            "found none; compare runs of the same recipe."
        )
    differences = [_difference(new[key], old[key]) for key in keys]
    adjusted = holm([difference.p for difference in differences])
    old_runs = {(run.row, run.seed): run for run in before.experiment.runs}
    common = [
        (run, old_runs[run.row, run.seed]) for run in after.experiment.runs if (run.row, run.seed) in old_runs
    ]
    rows = [dict.fromkeys(run.row for run in summary.experiment.runs) for summary in (before, after)]
    return Changes(
        changes=tuple(
            Change(
                row,
                quantity,
                float(np.mean(list(old[row, quantity].values()))),
                float(np.mean(list(new[row, quantity].values()))),
                difference,
                p,
                judged(difference.mean * (-1 if upward.get(quantity, False) else 1), p),
            )
            for (row, quantity), difference, p in zip(keys, differences, adjusted, strict=True)
        ),
        settings=tuple(_settings(before, after)),
        only_before=tuple(name for name in rows[0] if name not in rows[1]),
        only_after=tuple(name for name in rows[1] if name not in rows[0]),
        identical=sum(_same(now.test_metrics, then.test_metrics) for now, then in common),
        common=len(common),
    )


def _same(first: Mapping[str, float], second: Mapping[str, float]) -> bool:
    return first.keys() == second.keys() and np.array_equal(
        list(first.values()), [second[name] for name in first], equal_nan=True
    )


def _quantities(summary: Summary) -> dict[tuple[str, str], BySeed]:
    """Return every test metric, ``delta_m`` and the step time, by row and name, over seeds."""
    found: dict[tuple[str, str], dict[int, float]] = {}
    for run in summary.experiment.runs:
        for name, value in {**run.test_metrics, SECONDS: run.seconds_per_step}.items():
            found.setdefault((run.row, name), {})[run.seed] = value
    for row, by_seed in delta_m_by_seed(summary.experiment.runs).items():
        if by_seed:
            found[row, DELTA] = by_seed
    return {key: found[key] for key in sorted(found, key=lambda key: _place(summary, key))}


def _place(summary: Summary, key: tuple[str, str]) -> tuple[int, int]:
    rows = list(dict.fromkeys(run.row for run in summary.experiment.runs))
    names = [column.key for column in summary.columns]
    return rows.index(key[0]), names.index(key[1]) if key[1] in names else len(names)


def _difference(after: BySeed, before: BySeed) -> Difference:
    shared = sorted(after.keys() & before.keys())
    if len(shared) >= FEWEST_SEEDS:
        return paired_difference([after[seed] for seed in shared], [before[seed] for seed in shared])
    return unpaired_difference(list(after.values()), list(before.values()))


def _settings(before: Summary, after: Summary) -> Iterator[tuple[str, str, str]]:
    """Yield what was set otherwise: the recipe, the versions, the hardware, the seeds."""
    sides = [_setting(summary) for summary in (before, after)]
    for name in dict.fromkeys([*sides[0], *sides[1]]):
        old, new = (side.get(name, "none") for side in sides)
        if old != new:
            yield name, old, new


def _setting(summary: Summary) -> dict[str, str]:
    runs = summary.experiment.runs
    return {
        **dict(_flat(summary.experiment.recipe)),
        **_said(runs, "versions"),
        **_said(runs, "hardware"),
        "seeds": ", ".join(map(str, sorted({run.seed for run in runs}))),
    }


def _said(runs: Iterable[RunRecord], field: str) -> dict[str, str]:
    found: dict[str, dict[str, None]] = {}
    for run in runs:
        for key, value in getattr(run, field).items():
            found.setdefault(f"{field}.{key}", {})[value] = None
    return {key: ", ".join(values) for key, values in found.items()}


def _flat(recipe: Mapping[str, Any], prefix: str = "recipe") -> Iterator[tuple[str, str]]:
    for key, value in recipe.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}.{key}")
        elif isinstance(value, list):
            yield f"{prefix}.{key}", ", ".join(map(str, value)) or "none"
        else:
            yield f"{prefix}.{key}", str(value)
