"""Every example runs, at a small size, and prints a finite row for `ew` and for the strategy it is about."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
ARGUMENTS = {
    "detector": ["--steps", "10"],
    "distillation": ["--steps", "10"],
    "language_model": ["--steps", "10"],
    "lightning_auxiliary": ["--epochs", "2"],
    "physics_informed": ["--steps", "10"],
}
COMPARED = {
    "detector": "uw",
    "distillation": "nlb",
    "language_model": "coba(warm_up=5,window=20)",
    "lightning_auxiliary": "uw+pcgrad",
    "physics_informed": "config",
}


def run(name: str, arguments: list[str], patch: pytest.MonkeyPatch, folder: Path) -> None:
    patch.setattr("sys.argv", [f"{name}.py", *arguments])
    patch.chdir(folder)
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")


def numbers(line: str) -> list[float]:
    return [float(number) for number in re.findall(r"(?<![\w.])-?\d+\.?\d*(?:e[+-]?\d+)?(?![\w.])", line)]


def test_no_example_is_left_out() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(ARGUMENTS)


@pytest.mark.parametrize("name", ARGUMENTS)
def test_an_example_compares_a_strategy_with_ew(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(name, ARGUMENTS[name], monkeypatch, tmp_path)
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split()[0]: line for line in lines if line.split()[0] in ("ew", COMPARED[name])}
    assert set(rows) == {"ew", COMPARED[name]}
    found = [numbers(row.split(maxsplit=1)[1]) for row in rows.values()]
    assert len(found[0]) == len(found[1]) >= 3
    assert found[0] != found[1]
    assert "nan" not in "".join(rows.values())
    assert "inf" not in "".join(rows.values())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ARGUMENTS)
def test_help_is_the_text_above_the_code(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        run(name, ["--help"], monkeypatch, tmp_path)
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert f"python examples/{name}.py" in text
    assert ARGUMENTS[name][0] in text
