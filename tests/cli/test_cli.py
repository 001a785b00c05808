"""The command line, in processes of its own: results, errors, and a run that is killed and resumed."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from command_line import assert_refused
from experiments import write_recipe
from mtobal import strategies
from mtobal.bench.records import RunRecord, load_experiment
from mtobal.cli import main
from report.experiments import write_experiment

RECIPE = {"epochs": 12, "data": {"name": "digits", "train_pairs": 400, "validation_pairs": 60, "test_pairs": 60}}


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "mtobal", *map(str, arguments)]


def mtobal(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=120)


def untimed(record: RunRecord) -> RunRecord:
    epochs = tuple(dataclasses.replace(epoch, seconds=0.0) for epoch in record.epochs)
    return dataclasses.replace(record, epochs=epochs, seconds_per_step=0.0, training_seconds=0.0)


def outcome(folder: Path) -> list[RunRecord]:
    return [untimed(run) for run in load_experiment(folder).runs]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recipe(tmp_path_factory.mktemp("recipes") / "tiny.yaml", **RECIPE)


@pytest.fixture(scope="module")
def uninterrupted(recipe: Path) -> tuple[Path, str]:
    # Without --out, the folder is runs/<recipe> where the command is called.
    output = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(output):
        patch.chdir(recipe.parent)
        assert main(["bench", str(recipe)]) == 0
    return recipe.parent / "runs" / "tiny", output.getvalue()


def stop_in_the_middle(recipe: Path, folder: Path, sign: signal.Signals) -> subprocess.CompletedProcess[str]:
    """Send a signal as soon as the last run has its first checkpoint."""
    checkpoint = folder / "uw+pcgrad" / "seed-0" / "last.ckpt"
    process = subprocess.Popen(
        command("bench", recipe, "--out", folder), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while not checkpoint.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.send_signal(sign)
    stdout, stderr = process.communicate(timeout=60)
    assert not checkpoint.with_name("result.json").exists(), "the run had ended before the signal came"
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


def test_bench_trains_reports_and_says_where(uninterrupted: tuple[Path, str]) -> None:
    folder, stdout = uninterrupted
    lines = stdout.splitlines()
    assert lines[0].startswith("[1/4] single(left), seed 0: test left/accuracy 0.")
    assert lines[3].startswith("[4/4] uw+pcgrad, seed 0: test left/accuracy 0.")
    assert "uw+pcgrad" in "".join(lines[4:])
    assert lines[-1] == f"Report: {Path('runs') / 'tiny' / 'report.html'}"
    assert {"report.html", "report.md", "results.csv", "recipe.yaml"} <= {path.name for path in folder.iterdir()}
    assert len(outcome(folder)) == 4


@pytest.mark.slow
def test_a_killed_run_ends_with_the_numbers_of_one_that_was_not(
    recipe: Path, uninterrupted: tuple[Path, str], tmp_path: Path
) -> None:
    folder = tmp_path / "killed"
    killed = stop_in_the_middle(recipe, folder, signal.SIGKILL)
    assert killed.returncode == -signal.SIGKILL
    assert load_experiment(folder).unfinished == ("uw+pcgrad/seed-0",)
    again = mtobal("bench", recipe, "--out", folder)
    assert (again.returncode, again.stderr) == (0, "")
    lines = again.stdout.splitlines()
    assert [line.rsplit(": ", 1)[-1] for line in lines[:3]] == ["finished before"] * 3
    assert outcome(folder) == outcome(uninterrupted[0])


@pytest.mark.slow
def test_ctrl_c_ends_cleanly(recipe: Path, tmp_path: Path) -> None:
    stopped = stop_in_the_middle(recipe, tmp_path / "stopped", signal.SIGINT)
    assert stopped.returncode == 130
    assert stopped.stderr == "mtobal: interrupted; the same command goes on after the last finished epoch.\n"


def test_report_is_written_anew(uninterrupted: tuple[Path, str], capsys: pytest.CaptureFixture[str]) -> None:
    folder, _ = uninterrupted
    page = folder / "report.html"
    page.unlink()
    assert main(["report", str(folder)]) == 0
    assert page.is_file()
    assert capsys.readouterr().out.splitlines()[-1] == f"Report: {page}"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bench", "--strategies", "ew,pcgard"], "unknown strategy 'pcgard': did you mean 'pcgrad'?"),
        (["bench", "--strategies", "uw(rate=1)"], "strategy 'uw' has no option 'rate'"),
        (["bench", "--strategies", "ew+uw"], "both fill the place"),
        (["bench", "digit"], "unknown recipe 'digit': did you mean 'digits'?"),
        (["bench", "nowhere.yaml"], "nowhere.yaml: expected a recipe, but it cannot be read (No such file"),
        (["bench", "--tasks", "left,rihgt"], "unknown task 'rihgt': did you mean 'right'?"),
        (["bench", "--epoch", "3"], "unrecognized arguments: --epoch"),
        (["bench", "--epochs", "0"], "--epochs: expected a whole number from 1, not '0'"),
        (["bench", "--seeds", "two"], "--seeds: expected a whole number from 1, not 'two'"),
        (["bench", "digits", "digits"], "unrecognized arguments: digits"),
        (["benhc"], "invalid choice: 'benhc'"),
        ([], "expected"),
        (["report"], "required: report.folder"),
        (["report", "nowhere"], "nowhere: expected the folder of an experiment"),
        (["strategies", "pcgard"], "unknown strategy 'pcgard': did you mean 'pcgrad'?"),
    ],
)
def test_wrong_use_gives_one_line_and_code_2(
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert_refused(arguments, message, capsys, tmp_path)


def test_wrong_use_in_a_process_of_its_own() -> None:
    result = mtobal("bench", "--strategies", "pcgard")
    assert result.returncode == 2
    assert result.stderr.startswith("mtobal: unknown strategy 'pcgard'")
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""


def test_a_report_that_cannot_be_written_is_still_shown(
    uninterrupted: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "read"
    shutil.copytree(uninterrupted[0], folder)
    (folder / "results.csv").unlink()
    (folder / "results.csv").mkdir()  # refuses to be replaced by a file, even where root writes
    for arguments in ([str(folder)], [str(uninterrupted[0]), str(folder)]):
        if len(arguments) == 2:
            (folder / "changes.md").mkdir()
        assert main(["report", *arguments]) == 2
        shown = capsys.readouterr()
        assert "cannot write to " in shown.err
        assert shown.err.endswith("; make room there, or report on a copy of the folder.\n")
        assert shown.err.count("\n") == 1
        assert ("single-task" in shown.out) == (len(arguments) == 1)


def test_tables_fit_eighty_columns(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    # Three seeds that differ, so that every number has its spread, and names longer than a terminal has room for.
    names = [
        "single(left)",
        "single(right)",
        "ew",
        "static(weights=[1.291, 0.709])",
        "uw+cagrad(c=0.4)+samo(rho=0.001)",
    ]

    def write(folder: Path, tasks: tuple[str, ...], shift: float) -> Path:
        singles = {f"single({task})": [[0.7], [0.71], [0.75]] for task in tasks}
        rows = {
            name: [[0.6 + shift + 0.01 * (seed + place) for place, _ in enumerate(tasks)] for seed in range(3)]
            for name in names[2:]
        }
        return write_experiment(folder, {**singles, **rows}, tasks=tasks, seconds=dict.fromkeys(names, 0.01))

    two, other = write(tmp_path / "two", ("left", "right"), 0.0), write(tmp_path / "other", ("left", "right"), 0.1)
    three = write(tmp_path / "three", ("left", "right", "middle"), 0.0)
    for arguments, whole in (
        ([two], ["single-task", "0.6100±0.0100"]),
        ([three], names[3:]),
        ([two, other], ["delta_m", "better"]),
    ):
        assert main(["report", *map(str, arguments)]) == 0
        out = capsys.readouterr().out
        table = re.split("Report: |Every comparison: ", out)[0]  # what follows is a path
        assert max(map(len, table.splitlines())) <= 80
        assert "…" not in out
        assert all(text in table for text in whole)


def test_another_recipe_in_the_same_folder_is_refused(
    recipe: Path, uninterrupted: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", str(recipe), "--out", str(uninterrupted[0]), "--epochs", "3"]) == 2
    error = capsys.readouterr().err
    assert "epochs is 12 there and 3 now" in error
    assert "--out" in error


@pytest.mark.parametrize("package", ["jsonargparse", "rich", "yaml", "sklearn"])
def test_a_missing_extra_is_named(
    package: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for name in [name for name in sys.modules if name.startswith(("mtobal.bench", f"{package}."))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    assert main(["bench", "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err == (
        f'mtobal: the command line needs {package}, which is not installed: pip install "mtobal[bench]"\n'
    )


def test_the_catalogue_lists_every_strategy(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["strategies"]) == 0
    listed = {line.split()[0] for line in capsys.readouterr().out.splitlines()}
    assert strategies.available().keys() <= listed


@pytest.mark.parametrize("name", strategies.available())
def test_every_card_is_shown_whole(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    assert main(["strategies", name]) == 0
    card = capsys.readouterr().out
    for text in (name, strategies.available()[name].summary, strategies.available()[name].paper):
        assert text in card


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["bench", "--help"], ["strategies", "--help"]])
def test_help_and_version(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 0
    assert "null" not in capsys.readouterr().out


def test_the_catalogue_and_the_help_load_no_training_library() -> None:
    code = """
import sys
from mtobal.cli import main
main(["strategies"])
try:
    main(["bench", "--help"])
except SystemExit:
    pass
print(sorted({"lightning", "torchmetrics", "sklearn", "cvxpy", "plotly"} & sys.modules.keys()), file=sys.stderr)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert result.stderr == "[]\n"
