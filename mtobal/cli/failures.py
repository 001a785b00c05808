"""What a command that did its work has to say against it."""

from __future__ import annotations

from collections.abc import Iterable


class Failures(Exception):
    """Some of what a command did came to no good result; one line for each."""

    def __init__(self, lines: Iterable[str]) -> None:
        self.lines = tuple(lines)
        super().__init__("; ".join(self.lines))
