"""What bash completes, asked of a real bash."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from mtobal import strategies
from mtobal.bench.recipes import recipe_names
from mtobal.cli import main

ASK = """
source "$1"
shift
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
_mtobal
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("completion") / "mtobal"
    with path.open("w") as file, pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdout", file)
        assert main(["completion"]) == 0
    return path


def completed(script: Path, *words: str) -> list[str]:
    bash = shutil.which("bash")
    assert bash is not None
    run = subprocess.run(
        [bash, "--norc", "-u", "-c", ASK, "bash", script, "mtobal", *words],
        capture_output=True,
        text=True,
        check=True,
        env={},
    )
    assert run.stderr == ""
    return run.stdout.split()


def test_commands_and_their_commands(script: Path) -> None:
    assert {"bench", "report", "data", "strategies", "completion"} <= set(completed(script, ""))
    assert completed(script, "rep") == ["report"]
    assert completed(script, "data", "") == ["check", "prepare"]
    assert completed(script, "--v") == ["--version"]


def test_options_of_the_command_at_hand(script: Path) -> None:
    assert completed(script, "bench", "--se") == ["--seeds"]
    assert completed(script, "bench", "digits", "--st") == ["--strategies"]
    assert completed(script, "data", "prepare", "--o") == ["--out"]
    assert completed(script, "report", "--o") == []


def test_names(script: Path) -> None:
    assert completed(script, "bench", "") == recipe_names()
    assert completed(script, "strategies", "pcg") == ["pcgrad"]
    assert "nyuv2" in completed(script, "data", "check", "ny")
    assert completed(script, "strategies", "") == list(strategies.available())


def test_specs_are_completed_part_by_part(script: Path) -> None:
    assert completed(script, "bench", "--strategies", "ew,uw+pcg") == ["ew,uw+pcgrad"]
    assert "ew,mgda_ub" in completed(script, "bench", "--strategies", "ew,mgda")


@pytest.mark.parametrize("words", [("report", ""), ("bench", "--out", ""), ("bench", "my/recipe")])
def test_what_is_a_path_is_left_to_the_shell(words: tuple[str, ...], script: Path) -> None:
    assert completed(script, *words) == []
    assert "-o default" in script.read_text()
