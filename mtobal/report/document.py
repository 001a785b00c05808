"""Everything that the report says, as one JSON document."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from mtobal.bench.records import RunRecord, finite_or_null
from mtobal.report.comparison import Comparison, Pair
from mtobal.report.front import coverages
from mtobal.report.runs import budget, epochs_trained, tuned_settings
from mtobal.report.statistics import ALPHA, CONFIDENCE
from mtobal.report.table import Statistic, Summary, SummaryRow

FORM = 1


def document(summary: Summary) -> str:
    """Write the table, the tests and every record in full precision; null stands for no number."""
    content = {
        "form": FORM,
        "title": summary.experiment.title,
        "headline": summary.headline,
        "notes": summary.notes,
        "selections": summary.selections,
        "confidence": CONFIDENCE,
        "alpha": ALPHA,
        "columns": [dataclasses.asdict(column) for column in summary.columns],
        "rows": [{**_row(row), "epochs": epochs_trained(summary, row)} for row in summary.all_rows],
        "best_static": summary.best_static.runs[0].row if summary.best_static else None,
        "folded": sorted(summary.folded),
        "comparison": _comparison(summary.comparison),
        "coverages": [dataclasses.asdict(each) for each in coverages(summary)],
        "recipe": summary.experiment.recipe,
        "budget": budget(summary),
        "tuned": dict(tuned_settings(summary)),
        "unfinished": summary.experiment.unfinished,
        "failures": [vars(failure) for failure in summary.experiment.failures],
        "runs": [_run(run) for run in summary.experiment.runs],
    }
    return json.dumps(finite_or_null(content), ensure_ascii=False, allow_nan=False, default=str) + "\n"


def _run(run: RunRecord) -> dict[str, Any]:
    """Return a record as plain values; `dataclasses.asdict` copies every number, which takes seconds for many."""
    return {
        **vars(run),
        "metric_infos": [vars(info) for info in run.metric_infos],
        "epochs": [vars(epoch) for epoch in run.epochs],
    }


def _row(row: SummaryRow) -> dict[str, Any]:
    return {
        "name": row.name,
        "kind": row.kind,
        "strategy": row.runs[0].strategy,
        "seeds": row.seeds,
        "cells": {key: _cell(cell) for key, cell in row.cells.items()},
        "seconds_per_step": None if row.seconds_per_step is None else _cell(row.seconds_per_step),
        "steps": row.steps,
        "parameters": row.parameters,
        "training_seconds": row.training_seconds,
        "peak_memory": None if row.peak_memory is None else _cell(row.peak_memory),
        "conflict": {layer: _cell(cell) for layer, cell in row.conflict.items()},
    }


def _cell(cell: Statistic) -> Mapping[str, Any]:
    return {"mean": cell.mean, "spread": cell.spread, "interval": cell.interval, "values": cell.values}


def _comparison(comparison: Comparison) -> dict[str, Any]:
    return {
        "score": comparison.score,
        "cannot_tell": comparison.cannot_tell,
        "seeds": comparison.seeds,
        "pairs": [_pair(pair) for pair in comparison.pairs],
        "against_reference": [_pair(pair) for pair in comparison.against_reference],
        "against_baseline": [_pair(pair) for pair in comparison.against_baseline],
        "ranks": None
        if comparison.ranks is None
        else {
            **dataclasses.asdict(comparison.ranks),
            "ranks": dict(zip(comparison.rows, comparison.ranks.ranks, strict=True)),
            "groups": [[comparison.rows[index] for index in group] for group in comparison.ranks.groups],
        },
    }


def _pair(pair: Pair) -> dict[str, Any]:
    return {
        "first": pair.first,
        "second": pair.second,
        "difference": pair.difference.mean,
        "interval": pair.difference.interval,
        "seeds": pair.difference.n,
        "p": pair.difference.p,
        "p_holm": pair.adjusted,
        "verdict": pair.verdict,
    }
