"""One version, a wheel with everything in it, and a tree that names nobody's machine."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import mtobal

ROOT = Path(__file__).resolve().parents[2]


def declared_version() -> str:
    # Python 3.10 has no TOML reader.
    match = re.search(
        r'^version = "([^"]+)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert match
    return match[1]


def tree(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            yield path


def test_the_installed_version_is_the_declared_one() -> None:
    assert mtobal.__version__ == declared_version(), "reinstall: the installed metadata is of another version"


def test_the_version_is_written_once() -> None:
    copies = [
        path for path in tree(ROOT / "mtobal") if f'"{declared_version()}"' in path.read_text(encoding="utf-8")
    ]
    assert copies == []


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Build the wheel in a copy of the sources, and list what is in it."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "mtobal", source / "mtobal", ignore=shutil.ignore_patterns("__pycache__"))
    build = "import setuptools.build_meta as backend; backend.build_wheel('.')"
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True)
    (file,) = source.glob("*.whl")
    return set(zipfile.ZipFile(file).namelist())


def test_the_wheel_holds_every_file_of_the_package(wheel: set[str]) -> None:
    assert {path.relative_to(ROOT).as_posix() for path in tree(ROOT / "mtobal")} <= wheel


@pytest.mark.parametrize(
    "pattern", [r"mtobal/py\.typed", r"mtobal/bench/recipes/.+\.yaml", r"mtobal/report/.+\.html.*"]
)
def test_the_wheel_holds_data_files(wheel: set[str], pattern: str) -> None:
    assert any(re.fullmatch(pattern, name) for name in wheel)


def test_the_wheel_holds_nothing_else(wheel: set[str]) -> None:
    assert {name.split("/")[0] for name in wheel} == {"mtobal", f"mtobal-{declared_version()}.dist-info"}


def test_no_file_names_a_machine_or_a_registry() -> None:
    # In pieces, so that this file does not name them either.
    needles = [f"/{name}/" for name in ("work", "root", "home", "Users")]
    needles += ["/tmp" + "/bash", "/opt" + "/", ".py" + "env", "pypi" + ".org", "python" + "hosted"]
    generated = (ROOT / "docs/_build", ROOT / "docs/strategies")
    files = [path for path in ROOT.iterdir() if path.is_file()]
    for folder in ("mtobal", "tests", "benchmarks", "docs", "examples", ".ci"):
        files += [path for path in tree(ROOT / folder) if not any(map(path.is_relative_to, generated))]
    contents = {path: path.read_bytes() for path in files}
    assert [(path.name, needle) for path in files for needle in needles if needle.encode() in contents[path]] == []
