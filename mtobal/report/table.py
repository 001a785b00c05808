"""The results table: what its cells hold and how they are written, the same in every face of the report."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from mtobal.bench.records import Experiment, RunRecord
from mtobal.report.comparison import Comparison, Pair
from mtobal.report.statistics import mean_interval

BASELINE = "single-task"
REFERENCE = "ew"
MISSING = "—"


@dataclass(frozen=True)
class Statistic:
    """Values over seeds and what is said about them. A NaN among them makes all of it NaN.

    `resampled` is the interval of a number that is no mean over seeds, such as the mean rank.
    """

    values: tuple[float, ...]
    resampled: tuple[float, float] | None = None

    @property
    def n(self) -> int:
        return len(self.values)

    @property
    def mean(self) -> float:
        return float(np.mean(self.values))

    @property
    def spread(self) -> float | None:
        """Sample standard deviation; None for one value."""
        return float(np.std(self.values, ddof=1)) if self.n > 1 else None

    @cached_property
    def interval(self) -> tuple[float, float] | None:
        """95 % interval; None where the seeds are too few for one."""
        return self.resampled or mean_interval(self.values)


@dataclass(frozen=True)
class Column:
    """A column of numbers: its key in `SummaryRow.cells`, its heading, its direction, how numbers are written."""

    key: str
    group: str
    label: str
    higher_is_better: bool
    decimals: int
    note: str
    signed: bool = False
    unit: str = ""

    @property
    def arrow(self) -> str:
        return "↑" if self.higher_is_better else "↓"

    def value(self, cell: Statistic | None) -> str:
        """Write the mean."""
        return MISSING if cell is None else self.number(cell.mean)

    def number(self, number: float) -> str:
        if math.isnan(number):
            return "NaN"
        rounded = round(number, self.decimals) + 0.0  # which makes -0.0 a plain 0.0
        return f"{rounded:{'+' if self.signed and rounded else ''}.{self.decimals}f}{self.unit}"

    def spread(self, cell: Statistic | None) -> str:
        """Write the spread; empty where there is none."""
        if cell is None or cell.spread is None or math.isnan(cell.spread):
            return ""
        return f"{cell.spread:.{self.decimals}f}"

    def interval(self, cell: Statistic | None) -> str:
        """Write the interval; empty where there is none."""
        if cell is None or cell.interval is None:
            return ""
        low, high = cell.interval
        return f"[{self.number(low)}, {self.number(high)}]"

    def text(self, cell: Statistic | None, separator: str = " ± ") -> str:
        spread = self.spread(cell)
        return self.value(cell) + (separator + spread if spread else "")


@dataclass(frozen=True)
class SummaryRow:
    """A line of the table; `cells` holds a `Statistic` by column key, no entry where there is no answer.

    A row that was `chosen` repeats another one, the best of its kind. `peak_memory`, in MiB, is None unless every
    run recorded it, and `conflict` is by layer.
    """

    name: str
    kind: Literal["multi", "baseline", "chosen"]
    runs: tuple[RunRecord, ...]
    cells: Mapping[str, Statistic]
    seconds_per_step: Statistic | None
    steps: int
    parameters: int
    training_seconds: float
    peak_memory: Statistic | None
    conflict: Mapping[str, Statistic]

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(sorted({run.seed for run in self.runs}))

    @property
    def seed_count(self) -> str:
        """Number of seeds; a range where the single-task runs of the tasks differ in it."""
        counts = [sum(run.row == name for run in self.runs) for name in {run.row for run in self.runs}]
        return str(min(counts)) if min(counts) == max(counts) else f"{min(counts)}-{max(counts)}"

    def mean(self, key: str) -> float:
        """Return the mean of a cell; NaN where there is none."""
        return self.cells[key].mean if key in self.cells else math.nan


@dataclass(frozen=True)
class Summary:
    """The table with what has to be said about it. `rows` are the multi-task rows, best ``delta_m`` first.

    `best_static` repeats the row of fixed weights that is best on validation, and `folded` names the rows of a
    large sweep of them, for which it stands.
    """

    experiment: Experiment
    columns: tuple[Column, ...]
    baseline: SummaryRow | None
    rows: tuple[SummaryRow, ...]
    comparison: Comparison
    headline: str
    notes: tuple[str, ...]
    best_static: SummaryRow | None = None
    folded: frozenset[str] = frozenset()

    @property
    def all_rows(self) -> tuple[SummaryRow, ...]:
        return ((self.baseline,) if self.baseline else ()) + self.rows

    @cached_property
    def lines(self) -> tuple[SummaryRow, ...]:
        """All rows as the table lists them: the best fixed weights have a line of their own above their row."""
        lines: list[SummaryRow] = []
        for row in self.all_rows:
            if self.best_static and row.runs == self.best_static.runs:
                lines.append(self.best_static)
            lines.append(row)
        return tuple(lines)

    @property
    def selections(self) -> tuple[str, ...]:
        """The rules by which the runs chose their epoch; more than one is worth knowing about."""
        return tuple(dict.fromkeys(run.selection for run in self.experiment.runs))

    def is_best(self, row: SummaryRow, column: Column) -> bool:
        """Whether no other multi-task row has a better mean, as far as it is written."""
        if row.kind == "baseline" or len(self.rows) < 2:
            return False
        return round(row.mean(column.key), column.decimals) == self._best[column.key]

    @cached_property
    def _best(self) -> dict[str, float | None]:
        best: dict[str, float | None] = {}
        for column in self.columns:
            means = [round(row.mean(column.key), column.decimals) for row in self.rows]
            finite = [mean for mean in means if math.isfinite(mean)]
            best[column.key] = (max if column.higher_is_better else min)(finite, default=None)
        return best

    @cached_property
    def verdicts(self) -> tuple[tuple[str, Mapping[str, Pair]], ...]:
        """The families of tests that have a column of their own: their heading, and the test by line."""
        comparison = self.comparison
        families = ((REFERENCE, comparison.against_reference), (BASELINE, comparison.against_baseline))
        return tuple((f"against {name}", self._by_line(family)) for name, family in families if family)

    def _by_line(self, family: tuple[Pair, ...]) -> Mapping[str, Pair]:
        tests = {pair.first: pair for pair in family}
        return {line.name: tests[line.runs[0].row] for line in self.lines if line.runs[0].row in tests}


def verdict_text(pair: Pair | None) -> str:
    """Write the verdict of a test with its corrected p-value.

    Examples
    --------
    >>> from mtobal.report.statistics import Difference
    >>> verdict_text(Pair("uw", "ew", Difference(-1.0, (-1.2, -0.8), 0.001, 5), 0.004))
    'better, p = 0.004'
    """
    if pair is None:
        return MISSING
    if pair.adjusted is None:
        return pair.verdict
    p = f"= {pair.adjusted:.2g}" if pair.adjusted >= 0.001 else "< 0.001"
    return f"{pair.verdict}, p {p}"
