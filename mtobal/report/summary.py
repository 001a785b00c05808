"""The results table of an experiment: computed once here, and shown by page, Markdown, CSV and console."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.special import stdtrit

from mtobal.bench.records import Experiment, MetricInfo, RunRecord
from mtobal.metrics import delta_m, delta_p, mean_rank

BASELINE = "single-task"
REFERENCE = "ew"
MISSING = "—"


@dataclass(frozen=True)
class Statistic:
    """Values over seeds and what is said about them. A NaN among them makes all of it NaN."""

    values: tuple[float, ...]

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

    @property
    def interval(self) -> tuple[float, float] | None:
        """Student 95 % interval of the mean; None below three values, where it says next to nothing."""
        if self.n < 3 or self.spread is None or not math.isfinite(self.spread):
            return None
        half = float(stdtrit(self.n - 1, 0.975)) * self.spread / math.sqrt(self.n)
        return self.mean - half, self.mean + half


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
        """Write the mean, the same in every face of the table."""
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

    def text(self, cell: Statistic | None, separator: str = " ± ") -> str:
        spread = self.spread(cell)
        return self.value(cell) + (separator + spread if spread else "")


@dataclass(frozen=True)
class SummaryRow:
    """A line of the table; `cells` holds a `Statistic` by column key, no entry where there is no answer."""

    name: str
    kind: Literal["multi", "baseline"]
    runs: tuple[RunRecord, ...]
    cells: Mapping[str, Statistic]
    seconds_per_step: Statistic | None
    steps: int
    parameters: int
    training_seconds: float

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(sorted({run.seed for run in self.runs}))

    @property
    def seed_count(self) -> str:
        """Number of seeds; a range where the single-task runs of the tasks differ in it."""
        counts = [sum(run.row == name for run in self.runs) for name in {run.row for run in self.runs}]
        return str(min(counts)) if min(counts) == max(counts) else f"{min(counts)}-{max(counts)}"


@dataclass(frozen=True)
class Summary:
    """The table with what has to be said about it. `rows` are the multi-task rows, best ``delta_m`` first."""

    experiment: Experiment
    columns: tuple[Column, ...]
    baseline: SummaryRow | None
    rows: tuple[SummaryRow, ...]
    headline: str
    notes: tuple[str, ...]

    @property
    def all_rows(self) -> tuple[SummaryRow, ...]:
        return ((self.baseline,) if self.baseline else ()) + self.rows

    @property
    def selections(self) -> tuple[str, ...]:
        """The rules by which the runs chose their epoch; more than one is worth knowing about."""
        return tuple(dict.fromkeys(run.selection for run in self.experiment.runs))

    def is_best(self, row: SummaryRow, column: Column) -> bool:
        """Whether no other multi-task row has a better mean, as far as it is written."""
        if row.kind != "multi" or len(self.rows) < 2:
            return False
        means = {other.name: _mean(other, column.key) for other in self.rows}
        written = {name: round(mean, column.decimals) for name, mean in means.items() if math.isfinite(mean)}
        best = (max if column.higher_is_better else min)(written.values(), default=None)
        return best is not None and written.get(row.name) == best


def summary_table(experiment: Experiment) -> Summary:
    """Compute the results table of an experiment.

    ``delta_m`` and ``delta_p`` are taken for each seed against the single-task metrics averaged over seeds,
    then averaged. ``mean_rank`` ranks the multi-task rows by their mean metrics. The cost is the mean time of
    a training step over that of the row ``ew``.
    """
    singles = [run for run in experiment.runs if run.kind == "single"]
    multis: dict[str, list[RunRecord]] = {}
    for run in experiment.runs:
        if run.kind == "multi":
            multis.setdefault(run.row, []).append(run)
    infos = _metric_infos(experiment.runs)
    baseline_cells = _metric_cells(singles)
    baseline_means = {name: cell.mean for name, cell in baseline_cells.items()}
    no_delta = _why_no_delta(infos, baseline_means)
    ranks = _mean_ranks(multis, infos)
    reference = _seconds_per_step(multis.get(REFERENCE, []))

    def with_cost(cells: dict[str, Statistic], seconds: Statistic | None) -> dict[str, Statistic]:
        if seconds is None or reference is None or not reference.mean > 0:
            return cells
        return {**cells, "cost_ratio": Statistic((seconds.mean / reference.mean,))}

    rows = []
    for name, runs in multis.items():
        cells = _metric_cells(runs)
        if not no_delta:
            cells |= _deltas(runs, baseline_means, infos)
        if name in ranks:
            cells["mean_rank"] = Statistic((ranks[name],))
        seconds = _seconds_per_step(runs)
        rows.append(_row(name, "multi", runs, with_cost(cells, seconds), seconds))
    rows.sort(key=lambda row: (_last(_mean(row, "delta_m")), _last(_mean(row, "mean_rank"))))

    baseline = None
    if singles:
        # A step of the K networks is one step of each; it is only known when every task has its network.
        by_task = [_seconds_per_step(runs) for runs in _by_row(singles).values()]
        complete = {run.tasks[0] for run in singles} >= {info.task for info in infos}
        total = sum(cell.mean for cell in by_task if cell is not None)
        seconds = Statistic((total,)) if complete else None
        baseline = _row(BASELINE, "baseline", singles, with_cost(baseline_cells, seconds), seconds)

    columns = _columns(infos, [*rows, *([baseline] if baseline else [])])
    notes = _notes(experiment, rows, infos)
    return Summary(experiment, columns, baseline, tuple(rows), _headline(rows, no_delta), tuple(notes))


def _row(
    name: str,
    kind: Literal["multi", "baseline"],
    runs: list[RunRecord],
    cells: Mapping[str, Statistic],
    seconds: Statistic | None,
) -> SummaryRow:
    """Make a row; what is counted (steps, parameters, time) is summed over the row's networks."""
    networks = _by_row(runs).values()
    return SummaryRow(
        name=name,
        kind=kind,
        runs=tuple(runs),
        cells=cells,
        seconds_per_step=seconds,
        steps=sum(network[0].steps for network in networks),
        parameters=sum(network[0].parameters for network in networks),
        training_seconds=sum(
            float(np.mean([sum(epoch.seconds for epoch in run.epochs) for run in network])) for network in networks
        ),
    )


def _by_row(runs: Iterable[RunRecord]) -> dict[str, list[RunRecord]]:
    groups: dict[str, list[RunRecord]] = {}
    for run in runs:
        groups.setdefault(run.row, []).append(run)
    return groups


def _metric_infos(runs: Iterable[RunRecord]) -> tuple[MetricInfo, ...]:
    """All metrics, in the order of the multi-task runs, which know all of them."""
    ordered = sorted(runs, key=lambda run: run.kind != "multi")
    return tuple({info.name: info for run in ordered for info in run.metric_infos}.values())


def _metric_cells(runs: Iterable[RunRecord]) -> dict[str, Statistic]:
    values: dict[str, list[float]] = {}
    for run in runs:
        for name, value in run.test_metrics.items():
            values.setdefault(name, []).append(value)
    return {name: Statistic(tuple(numbers)) for name, numbers in values.items()}


def _seconds_per_step(runs: list[RunRecord]) -> Statistic | None:
    return Statistic(tuple(run.seconds_per_step for run in runs)) if runs else None


def _why_no_delta(infos: tuple[MetricInfo, ...], baseline: Mapping[str, float]) -> str:
    """Why there is no delta_m and delta_p, or an empty text if there is."""
    if not baseline:
        return "no single-task baseline has finished"
    if missing := sorted({info.task for info in infos if info.name not in baseline}):
        return f"the single-task baseline of {', '.join(missing)} has not finished"
    if zero := [info.name for info in infos if baseline[info.name] == 0]:
        return f"the single-task baseline of {', '.join(zero)} is 0, and a change relative to 0 is undefined"
    return ""


def _deltas(
    runs: list[RunRecord], baseline: Mapping[str, float], infos: tuple[MetricInfo, ...]
) -> dict[str, Statistic]:
    upward = {info.name: info.higher_is_better for info in infos}
    tasks = {info.name: info.task for info in infos}
    return {
        "delta_m": Statistic(tuple(delta_m(run.test_metrics, baseline, upward) for run in runs)),
        "delta_p": Statistic(tuple(delta_p(run.test_metrics, baseline, upward, tasks) for run in runs)),
    }


def _mean_ranks(multis: Mapping[str, list[RunRecord]], infos: tuple[MetricInfo, ...]) -> dict[str, float]:
    if len(multis) < 2:
        return {}
    means = {name: {key: cell.mean for key, cell in _metric_cells(runs).items()} for name, runs in multis.items()}
    return mean_rank(means, {info.name: info.higher_is_better for info in infos})


def _columns(infos: tuple[MetricInfo, ...], rows: list[SummaryRow]) -> tuple[Column, ...]:
    columns = [
        Column(
            key=info.name,
            group=info.task,
            label=info.name.removeprefix(f"{info.task}/"),
            higher_is_better=info.higher_is_better,
            decimals=_decimals(_mean(row, info.name) for row in rows),
            note="",
        )
        for info in infos
    ]
    scores = [
        Column(
            "delta_m", "", "delta_m", False, 2,
            "Mean over all metrics of the relative change against the single-task baseline, in percent. "
            "Below 0: better than one network for each task.",
            signed=True,
        ),
        Column(
            "delta_p", "", "delta_p", True, 2,
            "Mean over tasks of the mean over the task's metrics of the relative gain over the single-task "
            "baseline, in percent. Above 0: better than one network for each task. It differs from delta_m in "
            "more than sign as soon as tasks differ in their number of metrics.",
            signed=True,
        ),
        Column(
            "mean_rank", "", "mean rank", False, 2,
            "Rank among the multi-task rows of this table, averaged over the metrics; 1 is best, ties share "
            "their ranks, NaN is last.",
        ),
        Column(
            "cost_ratio", "", "time / step", False, 2,
            f"Time of a training step relative to {REFERENCE}, from the median step of each run. The single-task "
            "row adds up one step of each of its networks.",
            unit="x",
        ),
    ]  # fmt: skip
    return (*scores, *columns)


def _decimals(means: Iterable[float]) -> int:
    """Decimals that give the largest number of a column four significant digits."""
    largest = max((abs(mean) for mean in means if math.isfinite(mean)), default=0.0)
    return min(max(3 - math.floor(math.log10(largest)), 0), 8) if largest > 0 else 4


def _mean(row: SummaryRow, key: str) -> float:
    return row.cells[key].mean if key in row.cells else math.nan


def _last(value: float) -> float:
    return math.inf if math.isnan(value) else value


def _headline(rows: list[SummaryRow], no_delta: str) -> str:
    """Say what the data show, and no more than that, in one or two sentences."""
    if not rows:
        return "No multi-task row has finished yet."
    if no_delta:
        ranked = _compared(rows, "mean_rank")
        first = f" {ranked}" if ranked else ""
        return f"There is no delta_m: {no_delta}.{first}"
    finite = [row for row in rows if math.isfinite(_mean(row, "delta_m"))]
    if not finite:
        return "No row has a finite delta_m: every one diverged in at least one metric of at least one seed."
    best = finite[0]
    cell = best.cells["delta_m"]
    verdict = {"+": "worse than", "-": "better than"}.get(_percent(cell.mean)[0], "equal to")
    size = f"{_percent(cell.mean)} over {_seeds(cell.n)}, {verdict} the single-task networks on average"
    if len(rows) == 1:
        return f"{best.name} is the only multi-task row: delta_m {size}."
    opening = f"{best.name} has the lowest delta_m of {len(rows)} rows ({size})."
    reference = next((row for row in finite if row.name == REFERENCE), None)
    if reference is None:
        return f"{opening} There is no finite row {REFERENCE} (equal weighting) to hold it against."
    other = finite[1] if best is reference else reference
    return f"{opening} {_separated(best, other)}"


def _compared(rows: list[SummaryRow], key: str) -> str:
    ranked = sorted((row for row in rows if key in row.cells), key=lambda row: _mean(row, key))
    if not ranked:
        return ""
    lowest = _mean(ranked[0], key)
    names = [row.name for row in ranked if _mean(row, key) == lowest]
    verb = "have" if len(names) > 1 else "has"
    return f"By mean rank over the metrics, {' and '.join(names)} {verb} the lowest ({lowest:.2f})."


def _separated(best: SummaryRow, other: SummaryRow) -> str:
    """Whether the seeds tell the best row from another one."""
    mine, theirs = best.cells["delta_m"], other.cells["delta_m"]
    fewest = min(mine.n, theirs.n)
    against = f"{other.name} ({_percent(theirs.mean)})"
    if mine.interval is None or theirs.interval is None:
        amount = "One seed is" if fewest == 1 else "Two seeds are"
        return f"{amount} too few to conclude that it differs from {against}."
    intervals = f"{_range(mine)} against {_range(theirs)}"
    if mine.interval[1] >= theirs.interval[0]:
        return (
            f"Its 95 % interval over seeds overlaps with that of {against}: {intervals}. "
            "The seeds do not tell them apart."
        )
    return (
        f"Its 95 % interval over seeds lies below that of {against}: {intervals}. "
        "It was picked as the best of this table, so confirm it with fresh seeds."
    )


def _percent(value: float) -> str:
    rounded = round(value, 2)
    return f"{rounded:+.2f} %" if rounded else "0.00 %"


def _range(cell: Statistic) -> str:
    low, high = cell.interval or (math.nan, math.nan)
    return f"[{low:+.2f}, {high:+.2f}]"


def _seeds(n: int) -> str:
    return f"{n} seed" if n == 1 else f"{n} seeds"


def _notes(experiment: Experiment, rows: list[SummaryRow], infos: tuple[MetricInfo, ...]) -> list[str]:
    """Say what a reader has to know before trusting the table."""
    notes = []
    if experiment.unfinished:
        notes.append(f"Not finished, and not in the table: {', '.join(experiment.unfinished)}.")
    planned = [str(strategy) for strategy in experiment.recipe.get("strategies") or ()]
    if absent := [name for name in planned if name not in {row.name for row in rows}]:
        notes.append(f"In the recipe, but without a finished run: {', '.join(absent)}.")
    if rows and all(row.name != REFERENCE for row in rows):
        notes.append(f"There is no row {REFERENCE}, so the time of a step has nothing to be compared with.")
    if len({row.seeds for row in rows}) > 1:
        notes.append("Rows were run with different seeds; compare them with care.")
    names = [info.name for info in infos]
    if diverged := [row.name for row in rows if any(math.isnan(_mean(row, name)) for name in names)]:
        notes.append(f"NaN in at least one metric of at least one seed: {', '.join(diverged)}.")
    return notes
