"""Budgets of time, and tuning: every row has as much of them as any other."""

from __future__ import annotations

import dataclasses
import io
import json
import random
import shutil
import statistics
from pathlib import Path

import pytest
from rich.console import Console

from experiments import outcome, write_recipe
from mtobal.bench import recorder
from mtobal.bench.experiment import run_experiment
from mtobal.bench.plan import Run, plan_runs
from mtobal.bench.recipe import Recipe, load_recipe
from mtobal.bench.records import load_experiment, load_run, run_folder
from mtobal.bench.tuning import parse_tuned, plan_trials
from mtobal.errors import UsageError

TUNING = {"tune": ("stch.mu=0.1:10", "moco.rho=0.2,0.4"), "trials": 3, "strategies": ("ew", "uw+moco", "stch")}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    recipe = load_recipe(write_recipe(tmp_path_factory.mktemp("recipe") / "tiny.yaml"))
    return dataclasses.replace(recipe, tasks=("left", "right"))


def bench(recipe: Recipe, folder: Path) -> str:
    output = io.StringIO()
    assert run_experiment(recipe, folder, Console(file=output, width=200)) == ()
    return output.getvalue()


def planned_trials(recipe: Recipe) -> list[Run]:
    return plan_trials(recipe, plan_runs(recipe), {})


def test_all_rows_train_as_long_as_equal_weights(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A clock on which a step of ew takes a second, and a step of pcgrad two and a half.
    clock = iter(range(10**6))
    monkeypatch.setattr(recorder, "_now", lambda device: float(next(clock)))
    append = recorder.Recorder.on_train_batch_end

    def slow(self: recorder.Recorder, *args: object) -> None:
        if self.balancer is not None and "pcgrad" in self.balancer.strategy.spec:
            self._step_start -= 1.5
        append(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(recorder.Recorder, "on_train_batch_end", slow)
    recipe = dataclasses.replace(recipe, budget="time", strategies=("pcgrad", "uw"))
    lines = bench(recipe, tmp_path / "out").splitlines()
    assert [line.split()[1] for line in lines] == ["single(left),", "single(right),", "ew,", "pcgrad,", "uw,"]
    found = {run.row: run for run in load_experiment(tmp_path / "out").runs}
    assert {row: (run.budget_seconds, run.training_seconds) for row, run in found.items()} == {
        "single(left)": (None, 12.0),
        "single(right)": (None, 12.0),
        "ew": (None, 12.0),
        "pcgrad": (12.0, 12.5),
        "uw": (12.0, 12.0),
    }
    assert {row: (run.steps, len(run.epochs)) for row, run in found.items()} == {
        "single(left)": (12, 2),
        "single(right)": (12, 2),
        "ew": (12, 2),
        "pcgrad": (5, 1),  # less than one epoch of six steps
        "uw": (12, 2),
    }

    shutil.rmtree(tmp_path / "out" / "uw")
    path = tmp_path / "out" / "ew" / "seed-0" / "result.json"
    elsewhere = json.loads(path.read_text(encoding="utf-8"))
    elsewhere["hardware"]["device"] = "another"
    path.write_text(json.dumps(elsewhere), encoding="utf-8")
    (failure,) = run_experiment(recipe, tmp_path / "out", Console(file=io.StringIO()))
    assert failure.row == "uw"
    assert failure.reason.startswith("expected the machine on which ew, seed 0 was timed")


@pytest.mark.parametrize("how", [{"jobs": 2}, {"launcher": "ray"}])
def test_a_budget_of_time_needs_the_machine_to_itself(recipe: Recipe, tmp_path: Path, how: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="needs runs that have the machine to themselves"):
        run_experiment(dataclasses.replace(recipe, budget="time"), tmp_path / "out", Console(), **how)  # type: ignore[arg-type]


def test_every_row_has_as_many_trials_and_is_trained_with_the_best(recipe: Recipe, tmp_path: Path) -> None:
    recipe = dataclasses.replace(recipe, **TUNING)  # type: ignore[arg-type]
    folder = tmp_path / "out"
    bench(recipe, folder)
    chosen = json.loads((folder / "tuning" / "chosen.json").read_text(encoding="utf-8"))
    rows = ["single(left)", "single(right)", "ew", "uw+moco", "stch"]
    assert list(chosen) == rows
    found = {run.row: run for run in load_experiment(folder).runs}
    assert list(found) == rows
    for row in rows:
        trials = [
            load_run(run_folder(folder / "tuning", row, 0).with_name(f"trial-{trial}")) for trial in range(3)
        ]
        assert all(trial.test_metrics == {} for trial in trials)
        scores = [max(statistics.fmean(e.validation_metrics.values()) for e in trial.epochs) for trial in trials]
        best = trials[scores.index(max(scores))]
        assert chosen[row]["validation_score"] == max(scores)
        assert (chosen[row]["trials"], chosen[row]["failed"]) == (3, 0)
        assert found[row].strategy == best.strategy
        assert found[row].config["tuned"] == best.config["tuned"]
        assert {trial.seed for trial in trials}.isdisjoint({0})

    before = outcome(folder)
    shutil.rmtree(folder / "stch")
    lines = bench(recipe, folder).splitlines()
    assert [line for line in lines if "trial" in line] == []  # what was chosen stays
    assert outcome(folder) == before


def test_trials_differ_in_what_is_tuned_and_share_their_learning_rates(recipe: Recipe) -> None:
    recipe = dataclasses.replace(recipe, **{**TUNING, "trials": 40})  # type: ignore[arg-type]
    trials = planned_trials(recipe)
    by_row = {row: [run for run in trials if run.row == row] for row in ("single(left)", "ew", "uw+moco", "stch")}
    rates = [run.learning_rate for run in by_row["ew"]]
    assert rates[0] == recipe.learning_rate
    assert all(rate is not None and 0.0031 < rate < 0.032 for rate in rates)
    assert len(set(rates)) == 40
    for row, runs in by_row.items():
        assert [run.learning_rate for run in runs] == rates
        assert runs[0].strategy == ("" if row.startswith("single") else row)
    assert {run.strategy for run in by_row["ew"]} == {"ew"}
    assert {run.strategy for run in by_row["uw+moco"]} == {"uw+moco", "uw+moco(rho=0.2)", "uw+moco(rho=0.4)"}
    values = [float(run.strategy[len("stch(mu=") : -1]) for run in by_row["stch"][1:]]
    assert all(0.1 <= value <= 10 for value in values)
    assert 10 < sum(value < 1 for value in values) < 30  # uniform in the logarithm
    fewer = planned_trials(dataclasses.replace(recipe, trials=2))
    assert fewer == trials[: len(fewer)]


def test_whole_numbers_are_drawn_between_whole_numbers() -> None:
    generator = random.Random(0)
    assert {parse_tuned("dwa.temperature=1:3").draw(generator) for _ in range(50)} == {1, 2, 3}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tune": ("cagrad",)}, "tune: expected strategy.option=low:high or strategy.option=a,b,c, not 'cagrad'"),
        ({"tune": ("cagrad.c=0.8:0.2",)}, "expected two numbers low:high"),
        ({"tune": ("cagrad.d=1,2",)}, "strategy 'cagrad' has no option 'd'"),
        ({"tune": ("cagard.c=1,2",)}, "unknown strategy 'cagard': did you mean 'cagrad'"),
        ({"tune": ("cagrad.c=0.2:0.8",)}, "no row trains 'cagrad'"),
        ({"trials": 2, "budget": "time"}, "tuning works with a budget of epochs"),
        ({"trials": 2, "average_last": 1}, "tuning needs a validation split of its own"),
        ({"budget": "steps"}, "unknown budget 'steps'"),
    ],
)
def test_what_is_wrong_is_named(recipe: Recipe, changes: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        planned_trials(dataclasses.replace(recipe, **changes))  # type: ignore[arg-type]
