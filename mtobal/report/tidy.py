"""The results as tidy CSV: one line a run and metric with the scores beside it, and one line a test."""

from __future__ import annotations

import csv
import io

from mtobal.report.runs import WHOLE, conflict
from mtobal.report.table import BASELINE, REFERENCE, Statistic, Summary, SummaryRow

COLUMNS = (
    "row",
    "kind",
    "strategy",
    "seed",
    "task",
    "metric",
    "higher_is_better",
    "value",
    "value_mean",
    "value_spread",
    "value_low",
    "value_high",
    "seeds",
    "delta_m",
    "delta_m_mean",
    "delta_m_spread",
    "delta_m_low",
    "delta_m_high",
    "delta_p",
    "delta_p_mean",
    "delta_p_spread",
    "delta_p_low",
    "delta_p_high",
    "mean_rank",
    "mean_rank_low",
    "mean_rank_high",
    "cost_ratio",
    "best_static",
    "seconds_per_step",
    "training_seconds",
    "peak_memory_bytes",
    "conflict",
    "steps",
    "parameters",
    "selected_epoch",
    "failure",
)


def results_csv(summary: Summary) -> str:
    """Write every test metric of every run in full precision; no answer is an empty field.

    ``value``, ``delta_m`` and ``delta_p`` are those of the run; columns that end in ``_mean``, ``_spread``
    (sample standard deviation over ``seeds`` seeds), ``_low`` and ``_high`` (95 % interval), ``mean_rank`` and
    ``cost_ratio`` are those of the row. ``conflict`` is the share of conflicting pairs of tasks, a mean over the
    run's epochs, and ``best_static`` marks the fixed weights that are best on validation. A run that failed has
    one line, of the kind ``failed``, with the reason under ``failure``.
    """
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for row in summary.all_rows:
        best = summary.best_static is not None and summary.best_static.runs == row.runs
        writer.writerows({**line, "best_static": best} for line in _lines(row))
    for failure in summary.experiment.failures:
        writer.writerow({"row": failure.row, "kind": "failed", "seed": failure.seed, "failure": failure.reason})
    return buffer.getvalue()


def _lines(row: SummaryRow) -> list[dict[str, object]]:
    lines: list[dict[str, object]] = []
    for position, run in enumerate(row.runs):
        for info in run.metric_infos:
            cell = row.cells[info.name]
            line: dict[str, object] = {
                "row": row.name,
                "kind": run.kind,
                "strategy": run.strategy,
                "seed": run.seed,
                "task": info.task,
                "metric": info.name,
                "higher_is_better": info.higher_is_better,
                "value": run.test_metrics[info.name],
                "value_mean": cell.mean,
                "value_spread": cell.spread,
                **_ends("value", cell),
                "seeds": cell.n,
                "mean_rank": _mean(row.cells.get("mean_rank")),
                **_ends("mean_rank", row.cells.get("mean_rank")),
                "cost_ratio": _mean(row.cells.get("cost_ratio")),
                "seconds_per_step": run.seconds_per_step,
                "training_seconds": run.training_seconds,
                "peak_memory_bytes": run.peak_memory_bytes,
                "conflict": conflict(run) if WHOLE in row.conflict else None,
                "steps": run.steps,
                "parameters": run.parameters,
                "selected_epoch": run.selected_epoch,
            }
            for score in ("delta_m", "delta_p"):
                if delta := row.cells.get(score):
                    line |= {
                        score: delta.values[position],
                        f"{score}_mean": delta.mean,
                        f"{score}_spread": delta.spread,
                        **_ends(score, delta),
                    }
            lines.append(line)
    return lines


def _mean(cell: Statistic | None) -> float | None:
    return cell.mean if cell else None


def _ends(name: str, cell: Statistic | None) -> dict[str, object]:
    low, high = (cell and cell.interval) or (None, None)
    return {f"{name}_low": low, f"{name}_high": high}


def differences_csv(summary: Summary) -> str:
    """Write every test of one row against another; ``family`` is what its ``p_holm`` was corrected within."""
    comparison = summary.comparison
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(
        ("family", "first", "second", "score", "seeds", "difference", "low", "high", "p", "p_holm", "verdict")
    )
    for family, pairs in (
        ("all pairs", comparison.pairs),
        (f"against {REFERENCE}", comparison.against_reference),
        (f"against {BASELINE}", comparison.against_baseline),
    ):
        for pair in pairs:
            low, high = pair.difference.interval or (None, None)
            numbers = (pair.difference.n, pair.difference.mean, low, high, pair.difference.p, pair.adjusted)
            writer.writerow((family, pair.first, pair.second, comparison.score, *numbers, pair.verdict))
    return buffer.getvalue()
