"""The command that shows the strategies."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING

from mtobal import strategies
from mtobal.errors import unknown_name

if TYPE_CHECKING:
    from jsonargparse import Namespace


def catalogue(options: Namespace) -> None:
    """List all strategies, or show the card of one."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    cards = strategies.available()
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    if options.name is None:
        table.add_column("name", no_wrap=True)
        table.add_column("summary")
        table.add_column("passes", max_width=12)  # some cards say it in a sentence
        for place in dict.fromkeys(card.place for card in cards.values()):
            table.add_row(Text(place, style="bold"))
            for name, card in cards.items():
                if card.place == place:
                    table.add_row(f"  {name}", card.summary, card.backward_passes)
        table.caption = "passes: backward passes of a step, with K tasks"
        table.caption_justify = "left"
    elif options.name in cards:
        table.add_column("name")
        table.add_column(options.name)
        facts = dataclasses.asdict(cards[options.name])
        del facts["name"]
        for fact, value in facts.items():
            table.add_row(fact.replace("_", " "), Text(_shown(value)))
    else:
        raise unknown_name("strategy", options.name, cards)
    Console().print(table)


def _shown(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={_shown(item)}" for key, item in value.items()) or "none"
    if value is inspect.Parameter.empty:
        return "required"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value)
