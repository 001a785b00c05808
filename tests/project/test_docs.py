"""Every Python example in the documentation runs."""

from __future__ import annotations

import importlib
import inspect
import re
import textwrap
from pathlib import Path

import pytest

from mtobal.strategies import registry

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
FENCE = re.compile(
    r"^(?P<indent> *)```(?P<info>[^\n`]*)\n(?P<code>.*?)^(?P=indent)```[ ]*$", re.MULTILINE | re.DOTALL
)


def python_blocks(page: Path) -> list[str]:
    """Return the examples of a page, each behind as many empty lines as there are above it in the file."""
    text = page.read_text(encoding="utf-8")
    return [
        "\n" * text.count("\n", 0, match.start("code")) + textwrap.dedent(match["code"])
        for match in FENCE.finditer(text)
        if match["info"].strip() == "python"
    ]


@pytest.mark.parametrize("page", [page for page in PAGES if python_blocks(page)], ids=lambda page: page.name)
def test_examples_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    # An example may register a strategy; the other tests should not meet it.
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))
    namespace = {"__name__": "__main__"}
    for block in python_blocks(page):
        exec(compile(block, str(page), "exec"), namespace)


def test_the_first_pages_show_examples() -> None:
    for name in ("README.md", "docs/index.md", "docs/getting-started.md"):
        assert python_blocks(ROOT / name), f"{name} has no Python example"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_python_block_escapes_the_check(page: Path) -> None:
    infos = {match["info"].strip() for match in FENCE.finditer(page.read_text(encoding="utf-8"))}
    escaping = {info for info in infos if re.search(r"\bpy", info, re.IGNORECASE)} - {"python"}
    assert not escaping, f"{page.name}: write ```python alone instead of {sorted(escaping)}"


@pytest.mark.parametrize("room", ["mtobal", "mtobal.callbacks", "mtobal.strategies", "mtobal.tasks"])
def test_the_api_page_has_every_public_class_and_function(room: str) -> None:
    module = importlib.import_module(room)
    public = {
        name
        for name in module.__all__
        if inspect.isclass(found := getattr(module, name)) or inspect.isroutine(found)
    }
    # What is public in two places is documented in the upper one.
    upper = {"aggregate", "weights"} if room == "mtobal.strategies" else set()
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    documented = set(re.findall(rf"::\s{re.escape(room)}\.(\w+)$", page, re.MULTILINE))
    assert public - upper <= documented
