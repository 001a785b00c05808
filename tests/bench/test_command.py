"""The command `bench`: its options reach the recipe, and failed runs its exit code."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments import write_recipe
from mtobal.bench.recipe import load_recipe
from mtobal.cli import main


@pytest.mark.filterwarnings("ignore:the (loss|gradient) of task:RuntimeWarning")
def test_failed_runs_are_told_in_one_line_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = write_recipe(tmp_path / "tiny.yaml", learning_rate=1e30, epochs=3, strategies=["ew", "uw"])
    assert main(["bench", str(recipe), "--out", str(tmp_path / "out")]) == 1
    out, err = capsys.readouterr()
    assert "Report: " in out
    told = [line.split(" is not finite")[0] for line in err.splitlines()]
    assert [line.split(": the")[0] for line in told] == [
        "mtobal: ew, seed 0 failed",
        "mtobal: uw, seed 0 failed",
    ]


def test_options_reach_the_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = write_recipe(tmp_path / "tiny.yaml", strategies=["ew"])
    arguments = ["--scalarization", "1", "--tune", "uw.lr=0.1:0.2", "--tune", "ew.scale=sum", "--trials", "2"]
    assert main(["bench", str(recipe), "--out", str(tmp_path / "out"), *arguments]) == 2
    assert "tune: strategy 'ew' has no option 'scale'" in capsys.readouterr().err
    arguments = ["--scalarization", "1", "--strategies", "uw", "--tune", "uw.lr=0.1:0.2", "--trials", "1"]
    assert main(["bench", str(recipe), "--out", str(tmp_path / "out"), *arguments, "--logger", "csv"]) == 0
    written = load_recipe(tmp_path / "out" / "recipe.yaml")
    assert (written.scalarization, written.tune, written.trials) == (1, ("uw.lr=0.1:0.2",), 1)
    assert len(list((tmp_path / "out" / "logs").glob("*/seed-0/metrics.csv"))) == 5
    arguments = ["--budget", "time", "--jobs", "2"]
    assert main(["bench", str(recipe), "--out", str(tmp_path / "out"), *arguments]) == 2
    assert "leave out --jobs and --launcher" in capsys.readouterr().err
