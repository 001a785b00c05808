"""The folder of a command that writes: nobody else writes to it meanwhile, and anybody reads."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

import pytest

from experiments import write_recipe
from mtobal.bench.folder import LOCK_FILE, claimed
from mtobal.cli import main
from mtobal.errors import UsageError
from report.experiments import BY_HAND, write_experiment


@pytest.mark.parametrize(("command", "marker"), [("bench", "recipe.yaml"), ("contributions", "measurement.yaml")])
def test_a_second_command_is_refused_and_reads(
    command: str, marker: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe(tmp_path / "tiny.yaml")
    folder = write_experiment(tmp_path / "out", BY_HAND)
    (folder / marker).touch()
    before = sorted(path.name for path in folder.iterdir())
    with claimed(folder, "an experiment", marker):
        assert main([command, str(recipe), "--out", str(folder)]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"mtobal: {folder} is in use by process {os.getpid()} on ")
        assert error.endswith("wait until it ends, or choose another --out.\n")
        assert error.count("\n") == 1
        assert main(["report", str(folder)]) == 0
    assert sorted(path.name for path in folder.iterdir() if path.name in before) == before
    assert not (folder / LOCK_FILE).exists()


def test_a_claim_ends_with_its_process(tmp_path: Path) -> None:
    (tmp_path / LOCK_FILE).write_text("process 1 on a machine, since long ago", encoding="utf-8")
    with claimed(tmp_path, "an experiment", "recipe.yaml"):
        assert f"process {os.getpid()} on " in (tmp_path / LOCK_FILE).read_text(encoding="utf-8")
    with claimed(tmp_path, "an experiment", "recipe.yaml"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_lock_that_its_holder_removes_meanwhile_is_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, flock, calls = tmp_path / LOCK_FILE, fcntl.flock, []

    def removed_before(file: object, operation: int) -> None:
        calls.append(operation)
        if len(calls) == 1:
            path.unlink()
        flock(file, operation)  # type: ignore[arg-type]

    monkeypatch.setattr(fcntl, "flock", removed_before)
    with claimed(tmp_path, "an experiment", "recipe.yaml"):
        assert len(calls) == 2
        with pytest.raises(UsageError, match="is in use by"), claimed(tmp_path, "an experiment", "recipe.yaml"):
            pass


@pytest.mark.parametrize(("number", "goes_on"), [(errno.ENOSYS, True), (errno.EIO, False)])
def test_a_file_system_without_locks_is_written_to_as_it_is(
    number: int, goes_on: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(file: object, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    claim = claimed(tmp_path, "an experiment", "recipe.yaml")
    if goes_on:
        with claim:
            pass
    else:
        with pytest.raises(OSError, match=os.strerror(number)), claim:
            pass
