"""How long work tells how far it is."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, TypeVar

Item = TypeVar("Item")


class Track(Protocol):
    """Goes through items as they are and shows how far that is, as `rich.progress.Progress.track` does."""

    def __call__(self, items: Iterable[Item], description: str, total: int) -> Iterable[Item]: ...
