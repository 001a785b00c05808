"""Estimators in the manner of scikit-learn, from their training to the report."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import r2_score
from sklearn.model_selection import train_test_split

from mtobal.bench.estimators import compare_estimators
from mtobal.bench.records import load_experiment
from mtobal.errors import UsageError
from mtobal.models.r_mtgb import RobustMultiTaskBoosting
from mtobal.report import build_report

GENERATOR = np.random.default_rng(0)
INPUTS = GENERATOR.normal(size=(120, 2))
TASKS = np.array(["same", "alike", "opposite"])[np.arange(120) % 3]
TARGETS = np.where(TASKS == "opposite", -1, 1) * INPUTS[:, 0] + 0.1 * GENERATOR.normal(size=120)


def test_estimators_get_the_report_of_all_experiments(tmp_path: Path) -> None:
    robust = RobustMultiTaskBoosting(meta_trees=20, gate_trees=20, task_trees=5)
    pooled = RobustMultiTaskBoosting(meta_trees=40, gate_trees=0, task_trees=0)
    rows = {"r_mtgb": robust, "pooled": pooled}
    compare_estimators(tmp_path, rows, INPUTS, TARGETS, tasks=TASKS, baseline=pooled, seeds=2)
    runs = load_experiment(tmp_path).runs
    singles = [f"single({task})" for task in ("alike", "opposite", "same")]
    assert [run.row for run in runs if run.seed == 0 and run.kind == "single"] == singles
    assert [(run.row, run.seed) for run in runs if run.kind == "multi"] == [
        (row, seed) for row in rows for seed in range(2)
    ]

    train, test = train_test_split(np.arange(120), test_size=0.25, stratify=TASKS, random_state=1)
    pooled.set_params(seed=1).fit(INPUTS[train], TARGETS[train], tasks=TASKS[train])
    same = test[TASKS[test] == "same"]
    expected = r2_score(TARGETS[same], pooled.predict(INPUTS[same], tasks=TASKS[same]))
    (found,) = (run.test_metrics["same/r2"] for run in runs if (run.row, run.seed) == ("pooled", 1))
    assert found == pytest.approx(expected, rel=1e-12)
    assert "r_mtgb" in build_report(tmp_path).read_text(encoding="utf-8")


def test_wrong_use_is_refused(tmp_path: Path) -> None:
    model = RobustMultiTaskBoosting(meta_trees=1)
    with pytest.raises(UsageError, match="samples of two tasks or more, not 1 estimators and 1 tasks"):
        compare_estimators(tmp_path, {"a": model}, INPUTS, TARGETS, tasks=np.zeros(120), baseline=model)
    (tmp_path / "taken.txt").write_text("")
    with pytest.raises(UsageError, match="expected an empty folder"):
        compare_estimators(tmp_path, {"a": model}, INPUTS, TARGETS, tasks=TASKS, baseline=model)
