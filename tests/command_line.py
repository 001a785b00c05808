"""What every wrong use of the command line has in common."""

from __future__ import annotations

from pathlib import Path

import pytest

from mtobal.cli import main


def assert_refused(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    """One line that says what is wrong, exit code 2, and nothing written to the current folder."""
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("mtobal: ")
    assert captured.err.count("\n") == 1
    assert message in captured.err
    assert list(folder.iterdir()) == []
