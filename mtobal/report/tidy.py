"""The results as a tidy CSV: one line a run and metric, with the scores of the run and of its row beside it."""

from __future__ import annotations

import csv
import io

from mtobal.report.table import Statistic, Summary, SummaryRow

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
    "seeds",
    "delta_m",
    "delta_m_mean",
    "delta_m_spread",
    "delta_p",
    "delta_p_mean",
    "delta_p_spread",
    "mean_rank",
    "cost_ratio",
    "seconds_per_step",
    "steps",
    "parameters",
    "selected_epoch",
)


def results_csv(summary: Summary) -> str:
    """Write every test metric of every run in full precision; no answer is an empty field.

    ``value``, ``delta_m`` and ``delta_p`` are those of the run; columns that end in ``_mean`` and ``_spread``
    (sample standard deviation over ``seeds`` seeds), ``mean_rank`` and ``cost_ratio`` are those of the row.
    """
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for row in summary.all_rows:
        writer.writerows(_lines(row))
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
                "seeds": cell.n,
                "mean_rank": _mean(row.cells.get("mean_rank")),
                "cost_ratio": _mean(row.cells.get("cost_ratio")),
                "seconds_per_step": run.seconds_per_step,
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
                    }
            lines.append(line)
    return lines


def _mean(cell: Statistic | None) -> float | None:
    return cell.mean if cell else None
