"""Two experiments side by side: what changed beyond noise, what was set otherwise, nothing where nothing did."""

from __future__ import annotations

import csv
import io
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mtobal.bench.records import load_experiment, run_folder, save_run
from mtobal.cli import main
from mtobal.errors import UsageError
from mtobal.report import build_changes
from mtobal.report.changes import DELTA, Changes, find_changes
from mtobal.report.summary import summary_table
from report.experiments import Values, write_experiment


def noisy(seed: int, seeds: int = 5, **shifts: float) -> Values:
    """Rows whose two accuracies lie around 0.5, shifted by row, with a spread of 0.01 over seeds."""
    generator = np.random.default_rng(seed)
    rows = {
        f"single({task})": (0.5 + generator.normal(0, 0.01, (seeds, 1))).tolist() for task in ("left", "right")
    }
    return rows | {
        row: (0.5 + shift + generator.normal(0, 0.01, (seeds, 2))).tolist() for row, shift in shifts.items()
    }


def changes(before: Path, after: Path) -> Changes:
    return find_changes(*(summary_table(load_experiment(folder)) for folder in (before, after)))


def test_a_change_is_found_and_noise_is_not(tmp_path: Path) -> None:
    before = write_experiment(tmp_path / "a", noisy(0, ew=0.0, uw=0.0, mgda=0.2), epochs=3)
    after = write_experiment(tmp_path / "b", noisy(1, ew=0.0, uw=0.2, mgda=0.0, si=0.0), epochs=4)
    found = build_changes(before, after)
    assert {(change.row, change.verdict) for change in found.shown} == {("uw", "better"), ("mgda", "worse")}
    assert {change.quantity for change in found.shown} == {DELTA, "left/accuracy", "right/accuracy"}
    assert ("recipe.epochs", "3", "4") in found.settings
    assert (found.only_before, found.only_after) == ((), ("si",))
    assert (found.identical, found.common) == (0, 25)
    assert "6 of" in found.headline
    assert "mgda: delta_m by seed worse" in found.headline or "mgda: left/accuracy worse" in found.headline

    markdown = (after / "changes.md").read_text(encoding="utf-8")
    assert found.headline in markdown
    assert "- recipe.epochs: 3 before, 4 after" in markdown
    lines = list(csv.DictReader(io.StringIO((after / "changes.csv").read_text(encoding="utf-8"))))
    assert len(lines) == len(found.changes)
    for line, change in zip(lines, found.changes, strict=True):
        assert (line["row"], line["quantity"], line["verdict"]) == (change.row, change.quantity, change.verdict)
        assert float(line["change"]) == pytest.approx(change.after - change.before)


def test_the_same_records_have_not_changed(tmp_path: Path) -> None:
    values = noisy(0, ew=0.0, uw=0.1) | {"mgda": [[math.nan, 0.5]] * 5}
    folders = [write_experiment(tmp_path / name, values) for name in "ab"]
    found = changes(*folders)
    assert found.shown == found.settings == ()
    assert found.identical == found.common == 25
    assert found.headline.startswith("Nothing changed beyond noise in ")


def test_a_rerun_with_other_noise_raises_few_false_alarms(tmp_path: Path) -> None:
    alarms = 0
    for trial in range(20):
        before = write_experiment(tmp_path / f"{trial}a", noisy(2 * trial, ew=0.0, uw=0.0))
        after = write_experiment(tmp_path / f"{trial}b", noisy(2 * trial + 1, ew=0.0, uw=0.0))
        alarms += bool(changes(before, after).shown)
    assert alarms <= 4  # at 5 % each, more than four have a chance of 3 in 1000


def test_two_seeds_show_nothing_and_say_so(tmp_path: Path) -> None:
    before = write_experiment(tmp_path / "a", noisy(0, 2, ew=0.0))
    after = write_experiment(tmp_path / "b", noisy(1, 2, ew=0.3))
    assert changes(before, after).headline.startswith("With 2 seeds no change can be shown; it takes 3 or more.")


def test_with_two_shared_seeds_the_samples_are_compared_whole(tmp_path: Path) -> None:
    before = write_experiment(tmp_path / "a", noisy(0, ew=0.0))
    after = write_experiment(tmp_path / "b", noisy(1, ew=0.2))
    runs = load_experiment(after).runs
    for run in runs:
        shutil.rmtree(run_folder(after, run.row, run.seed))
    for run in runs:
        save_run(run_folder(after, run.row, run.seed + 3), replace(run, seed=run.seed + 3))
    found = changes(before, after)
    assert found.common == 6
    assert {change.difference.n for change in found.changes} == {5}
    assert {(change.row, change.verdict) for change in found.shown} == {("ew", "better")}


def test_the_command_prints_what_changed_with_names_as_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    before = write_experiment(tmp_path / "a", noisy(0, **{"[red]x|<b>": 0.0}))
    after = write_experiment(tmp_path / "b", noisy(1, **{"[red]x|<b>": 0.2}))
    assert main(["report", str(before), str(after)]) == 0
    assert "[red]x|<b>" in capsys.readouterr().out
    markdown = (after / "changes.md").read_text(encoding="utf-8")
    assert "<b>" not in markdown
    assert r"\[red\]x\|&lt;b&gt;" in markdown


def test_experiments_without_a_common_row_are_refused(tmp_path: Path) -> None:
    before = write_experiment(tmp_path / "a", {"ew": [[0.5, 0.5]]})
    after = write_experiment(tmp_path / "b", {"uw": [[0.5, 0.5]]})
    with pytest.raises(UsageError, match="expected rows and metrics that both have"):
        build_changes(before, after)
    assert not (after / "changes.md").exists()
