"""From the records of an experiment to its results table, computed once for all faces of the report."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Literal

import numpy as np

from mtobal.bench.records import Experiment, MetricInfo, RunRecord
from mtobal.metrics import delta_m, delta_p, mean_rank
from mtobal.report.comparison import Comparison, compare
from mtobal.report.headline import headline, notes
from mtobal.report.runs import conflicts
from mtobal.report.static import best_static, folded_rows
from mtobal.report.statistics import rank_intervals
from mtobal.report.table import BASELINE, REFERENCE, Column, Statistic, Summary, SummaryRow


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
            cells["mean_rank"] = ranks[name]
        seconds = _seconds_per_step(runs)
        rows.append(_row(name, "multi", runs, with_cost(cells, seconds), seconds))
    rows.sort(key=lambda row: (_last(row.mean("delta_m")), _last(row.mean("mean_rank"))))

    baseline = None
    if singles:
        # A step of the K networks is one step of each; it is only known when every task has its network.
        by_task = [_seconds_per_step(runs) for runs in _by_row(singles).values()]
        complete = {run.tasks[0] for run in singles} >= {info.task for info in infos}
        total = sum(cell.mean for cell in by_task if cell is not None)
        seconds = Statistic((total,)) if complete else None
        baseline = _row(BASELINE, "baseline", singles, with_cost(baseline_cells, seconds), seconds)

    columns = _columns(infos, [*rows, *([baseline] if baseline else [])])
    # A sweep is the trials of one method: only the trial that validation chooses competes.
    chosen = best_static(rows, singles, infos, experiment.recipe)
    folded = folded_rows(rows)
    competing = [row for row in rows if row.name not in folded or (chosen and row.runs == chosen.runs)]
    comparison = _compare(competing, experiment.runs, infos, no_delta)
    return Summary(
        experiment=experiment,
        columns=columns,
        baseline=baseline,
        rows=tuple(rows),
        comparison=comparison,
        headline=headline(competing, comparison, no_delta, chosen),
        notes=tuple(notes(experiment, rows, [info.name for info in infos])),
        best_static=chosen,
        folded=folded,
    )


def _row(
    name: str,
    kind: Literal["multi", "baseline"],
    runs: list[RunRecord],
    cells: Mapping[str, Statistic],
    seconds: Statistic | None,
) -> SummaryRow:
    """Make a row; what is counted (steps, parameters, time) is summed over the row's networks.

    They are trained one at a time, so that of their memory the largest counts.
    """
    networks = _by_row(runs).values()
    memory = [cell for network in networks if (cell := _peak_memory(network)) is not None]
    return SummaryRow(
        name=name,
        kind=kind,
        runs=tuple(runs),
        cells=cells,
        seconds_per_step=seconds,
        steps=sum(network[0].steps for network in networks),
        parameters=sum(network[0].parameters for network in networks),
        training_seconds=sum(float(np.mean([_training_seconds(run) for run in network])) for network in networks),
        peak_memory=max(memory, key=lambda cell: cell.mean) if memory and len(memory) == len(networks) else None,
        conflict=conflicts(runs),
    )


def _training_seconds(run: RunRecord) -> float:
    """Return the time of all training steps; of a record without it, that of the epochs with their evaluations."""
    return sum(epoch.seconds for epoch in run.epochs) if run.training_seconds is None else run.training_seconds


def _peak_memory(runs: list[RunRecord]) -> Statistic | None:
    bytes_ = [run.peak_memory_bytes for run in runs if run.peak_memory_bytes is not None]
    return Statistic(tuple(each / 2**20 for each in bytes_)) if len(bytes_) == len(runs) else None


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


def _mean_ranks(multis: Mapping[str, list[RunRecord]], infos: tuple[MetricInfo, ...]) -> dict[str, Statistic]:
    if len(multis) < 2:
        return {}
    upward = {info.name: info.higher_is_better for info in infos}
    means = {name: {key: cell.mean for key, cell in _metric_cells(runs).items()} for name, runs in multis.items()}
    by_seed = {name: {run.seed: run.test_metrics for run in runs} for name, runs in multis.items()}
    seeds = set.intersection(*(set(metrics) for metrics in by_seed.values()))
    # Only whole seeds can be resampled, so rows of other seeds leave the ranks without an interval.
    complete = all(len(metrics) == len(seeds) for metrics in by_seed.values())
    values = np.array(
        [[[metrics[seed][key] for key in upward] for metrics in by_seed.values()] for seed in sorted(seeds)]
    )
    intervals = rank_intervals(values, list(upward.values())) if complete else None
    return {
        name: Statistic((rank,), None if intervals is None else (float(intervals[i, 0]), float(intervals[i, 1])))
        for i, (name, rank) in enumerate(mean_rank(means, upward).items())
    }


def _compare(
    rows: list[SummaryRow], runs: Iterable[RunRecord], infos: tuple[MetricInfo, ...], no_delta: str
) -> Comparison:
    """Test the rows by ``delta_m``; without a baseline, by the mean rank within each seed."""
    if no_delta:
        return compare("mean rank within a seed", _ranks_by_seed(rows, infos), REFERENCE, BASELINE, {})
    scores = {
        row.name: {run.seed: value for run, value in zip(row.runs, row.cells["delta_m"].values, strict=True)}
        for row in rows
    }
    gains = {row: by_seed for row, by_seed in delta_m_by_seed(runs).items() if row in scores}
    return compare("delta_m", scores, REFERENCE, BASELINE, gains)


def delta_m_by_seed(runs: Iterable[RunRecord]) -> dict[str, dict[int, float]]:
    """Return ``delta_m`` of every multi-task row against the baseline of the same seed, where there is one.

    The table holds all seeds against the mean baseline, which is less noisy but whose error all of them share.
    """
    runs = list(runs)
    infos = _metric_infos(runs)
    baselines: dict[int, dict[str, float]] = {}
    found: dict[str, dict[int, float]] = {}
    for run in runs:
        if run.kind == "single":
            baselines.setdefault(run.seed, {}).update(run.test_metrics)
    for run in runs:
        if run.kind == "multi":
            baseline = baselines.get(run.seed, {})
            by_seed = found.setdefault(run.row, {})
            if all(baseline.get(info.name, 0.0) != 0 for info in infos):
                by_seed[run.seed] = _deltas([run], baseline, infos)["delta_m"].mean
    return found


def _ranks_by_seed(rows: list[SummaryRow], infos: tuple[MetricInfo, ...]) -> dict[str, dict[int, float]]:
    """Return the mean rank of every row among all rows, within each seed that all of them have."""
    if len(rows) < 2:
        return {}
    upward = {info.name: info.higher_is_better for info in infos}
    by_seed = {row.name: {run.seed: run.test_metrics for run in row.runs} for row in rows}
    ranks: dict[str, dict[int, float]] = {row.name: {} for row in rows}
    for seed in sorted(set.intersection(*(set(metrics) for metrics in by_seed.values()))):
        for name, rank in mean_rank({name: by_seed[name][seed] for name in by_seed}, upward).items():
            ranks[name][seed] = rank
    return ranks


def _columns(infos: tuple[MetricInfo, ...], rows: list[SummaryRow]) -> tuple[Column, ...]:
    columns = [
        Column(
            key=info.name,
            group=info.task,
            label=info.name.removeprefix(f"{info.task}/"),
            higher_is_better=info.higher_is_better,
            decimals=_decimals(row.mean(info.name) for row in rows),
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


def _last(value: float) -> float:
    return math.inf if math.isnan(value) else value
