"""Configuration of the documentation; it also writes one page for every registered strategy."""

from __future__ import annotations

import dataclasses
import inspect
import re
import shutil
from collections.abc import Mapping
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

import mtobal
from mtobal.strategies import Card
from mtobal.strategies.registry import lookup

project = "mtobal"
author = "The mtobal authors"
project_copyright = "The mtobal authors"
version = release = installed_version("mtobal")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax"]
exclude_patterns = ["_build"]
default_role = "code"  # single backquotes in docstrings name parameters

html_theme = "furo"
html_title = f"mtobal {release}"

myst_enable_extensions = ["deflist", "dollarmath"]
myst_heading_anchors = 3
napoleon_google_docstring = False
napoleon_use_rtype = False
autodoc_typehints = "none"  # the docstrings state types, with shapes
autodoc_inherit_docstrings = False  # an overridden method is documented in its base class
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True

STRATEGY_PAGES = Path(__file__).parent / "strategies"


def cell(value: Any) -> str:
    """Write the value of a card's field into a table."""
    if isinstance(value, Mapping):
        options = (
            f"`{name}`" if default is inspect.Parameter.empty else f"`{name}={default!r}`"
            for name, default in value.items()
        )
        return ", ".join(options) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "none"
    text = str(value).replace("|", "\\|")
    return re.sub(r"arXiv:(\d{4}\.\d{4,5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", text)


def strategy_page(card: Card) -> str:
    """Write the page of one strategy: every field of its card, then the documentation of its file."""
    facts = [field.name for field in dataclasses.fields(card) if field.name not in ("name", "summary")]
    return "\n".join(
        [
            f"# {card.name}",
            "",
            card.summary,
            "",
            "| | |",
            "|---|---|",
            *(f"| {fact.replace('_', ' ')} | {cell(getattr(card, fact))} |" for fact in facts),
            "",
            "```{eval-rst}",
            f".. automodule:: {lookup(card.name).__module__}",
            "   :members:",
            "```",
            "",
        ]
    )


def index_page(cards: Mapping[str, Card]) -> str:
    """Write the table of all strategies."""
    rows = (
        [f"[{name}]({name}.md)", card.place, card.reads, card.backward_passes, cell(card.summary)]
        for name, card in cards.items()
    )
    return "\n".join(
        [
            "# Strategies",
            "",
            "A spec names one strategy, or several of different places joined by `+`: `uw`, `uw+pcgrad`,",
            "`mgda(normalization=l2)`. In a terminal, `mtobal strategies` prints this table and",
            "`mtobal strategies NAME` one card.",
            "",
            "| name | place | reads | backward passes | what it does |",
            "|---|---|---|---|---|",
            *(f"| {' | '.join(row)} |" for row in rows),
            "",
            "```{toctree}",
            ":hidden:",
            "",
            *cards,
            "```",
            "",
        ]
    )


def write_strategy_pages(*_: Any) -> None:
    shutil.rmtree(STRATEGY_PAGES, ignore_errors=True)
    STRATEGY_PAGES.mkdir()
    cards = mtobal.strategies.available()
    (STRATEGY_PAGES / "index.md").write_text(index_page(cards), encoding="utf-8")
    for name, card in cards.items():
        (STRATEGY_PAGES / f"{name}.md").write_text(strategy_page(card), encoding="utf-8")


def setup(app: Any) -> None:
    app.connect("builder-inited", write_strategy_pages)
