"""A sweep of fixed weights: validation chooses, the choice competes, its trials do not."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from mtobal.bench.records import load_experiment, run_folder, save_run
from mtobal.report.colours import SWEEP_COLOUR, row_colours
from mtobal.report.console import console_table
from mtobal.report.document import document
from mtobal.report.explanations import explanations
from mtobal.report.front import coverages
from mtobal.report.runs import budget, epochs_trained
from mtobal.report.static import MOST_SHOWN
from mtobal.report.summary import summary_table
from mtobal.report.table import Summary
from report.experiments import Values, write_experiment

SINGLES: Values = {"single(left)": [[0.5]] * 3, "single(right)": [[0.5]] * 3}


def sweep(number: int) -> Values:
    """Rows whose right accuracy rises as the left one falls, and three seeds that differ."""
    return {
        "ew": [[0.5 + seed / 100, 0.5] for seed in range(3)],
        **{
            f"static(weights=[{place}, {number - place}])": [
                [0.5 + (place + seed) / 100, 0.52 - place / 50] for seed in range(3)
            ]
            for place in range(1, number)
        },
    }


def summarise(folder: Path, values: Values, best_on_validation: str = "", **recipe: object) -> Summary:
    write_experiment(folder, values, **recipe)
    for run in load_experiment(folder).runs:
        if run.row == best_on_validation:
            epochs = [  # at the selected one, and at no other
                replace(
                    epoch,
                    validation_metrics=dict.fromkeys(
                        run.test_metrics, 0.9 if epoch.epoch == run.selected_epoch else 0.1
                    ),
                )
                for epoch in run.epochs
            ]
            save_run(run_folder(folder, run.row, run.seed), replace(run, epochs=tuple(epochs)))
    return summary_table(load_experiment(folder))


@pytest.mark.parametrize("baselines", [{}, SINGLES])
def test_validation_chooses_and_not_the_test_split(tmp_path: Path, baselines: Values) -> None:
    worst = "static(weights=[3, 1])"
    summary = summarise(tmp_path, {**baselines, **sweep(4), "uw": [[0.9, 0.9]] * 3}, worst)
    assert summary.best_static is not None
    assert summary.best_static.name == "static weights, best of 4 on validation"
    assert summary.best_static.runs[0].row == worst
    names = [row.name for row in summary.lines]
    assert names.index(summary.best_static.name) == names.index(worst) - 1
    assert len(names) == len(summary.all_rows) + 1
    assert summary.folded == frozenset()  # few enough to be rows like any other
    assert len(summary.comparison.rows) == 5
    assert "trials" not in dict(explanations(summary))["static weights"]


@pytest.mark.parametrize("baselines", [{}, SINGLES])
def test_what_diverged_on_validation_is_not_chosen(tmp_path: Path, baselines: Values) -> None:
    diverged = {"ew": [[math.nan, 0.9]] * 3, "static(weights=[1, 9])": [[0.9, math.nan]] * 3}
    summary = summarise(tmp_path / "one", {**baselines, **diverged, "static(weights=[9, 1])": [[0.1, 0.1]] * 3})
    assert summary.best_static is not None
    assert summary.best_static.runs[0].row == "static(weights=[9, 1])"
    assert summarise(tmp_path / "none", {**baselines, **diverged}).best_static is None


def test_of_a_large_sweep_only_the_choice_competes(tmp_path: Path) -> None:
    assert summarise(tmp_path / "few", sweep(MOST_SHOWN)).folded == frozenset()
    number = MOST_SHOWN + 1
    chosen = f"static(weights=[2, {number - 2}])"
    values = {**SINGLES, **sweep(number), "uw": [[0.6 + seed / 50, 0.6] for seed in range(3)]}
    summary = summarise(tmp_path / "many", values, chosen)
    assert len(summary.folded) == number - 1
    assert "ew" not in summary.folded
    assert set(summary.comparison.rows) == {"ew", "uw", chosen}
    assert len(summary.comparison.pairs) == 3
    assert {pair.first for pair in summary.comparison.against_baseline} == {"ew", "uw", chosen}
    assert f"static weights, best of {number} on validation: {chosen}" in summary.headline
    assert console_table(summary).row_count == len(summary.lines) - len(summary.folded)
    assert "are its trials, and take no part in the tests" in dict(explanations(summary))["static weights"]
    assert {colour for row, colour in row_colours(summary).items() if row in summary.folded} == {SWEEP_COLOUR}
    assert json.loads(document(summary))["folded"] == sorted(summary.folded)


def test_where_validation_is_the_test_split_nothing_is_chosen(tmp_path: Path) -> None:
    summary = summarise(tmp_path, {**SINGLES, **sweep(MOST_SHOWN + 1)}, average_last=10)
    assert summary.best_static is None
    assert summary.comparison.rows == ("ew",)
    assert summary.lines == summary.all_rows


def test_the_front_is_what_no_other_fixed_weights_dominate(tmp_path: Path) -> None:
    rows = {
        "ew": [[0.2, 0.9]],
        "static(weights=[1, 2])": [[0.5, 0.5]],
        "static(weights=[2, 1])": [[0.4, 0.4]],
        "static(weights=[3, 1])": [[0.9, 0.1]],
        "uw": [[1.0, 1.0]],
    }
    (coverage,) = coverages(summarise(tmp_path, rows))
    assert coverage.front == ("ew", "static(weights=[1, 2])", "static(weights=[3, 1])")


def test_the_epochs_of_a_run_by_time_are_counted_in_steps(tmp_path: Path) -> None:
    summary = summarise(tmp_path, {"ew": [[0.5, 0.5]], "uw": [[0.6, 0.6]]}, also={"budget_seconds": 5.0})
    assert [epochs_trained(summary, row) for row in summary.rows] == [2.0, 2.0]
    slow = load_experiment(tmp_path).runs[1]
    assert budget(summary) == "5.0 s of training steps for every run; evaluations do not count."
    save_run(run_folder(tmp_path, "uw", 0), replace(slow, steps=13, budget_seconds=6.0))  # of 10 an epoch
    summary = summary_table(load_experiment(tmp_path))
    assert {row.name: epochs_trained(summary, row) for row in summary.rows} == {"ew": 2.0, "uw": 1.3}
    assert budget(summary).startswith("5.0 to 6.0 s of training steps")
