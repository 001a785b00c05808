"""Looking through a data set on disk: small checks, one a file, each of which passes or says what is wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from mtobal.data.files import refusals_of
from mtobal.errors import UsageError

Check = tuple[Path, Callable[[], object]]
"""What is looked at, and the look, which raises UsageError where something is wrong."""


def find_problems(checks: Iterable[Check]) -> Iterator[str | None]:
    """Make every check and return, for each, what is wrong, or None.

    Examples
    --------
    >>> def fails() -> None:
    ...     raise UsageError("train/image/3.npy: is cut off.")
    >>> list(find_problems([(Path("train"), lambda: None), (Path("train/image/3.npy"), fails)]))
    [None, 'train/image/3.npy: is cut off.']
    """
    for path, look in checks:
        try:
            with refusals_of(path):
                look()
        except UsageError as error:
            yield str(error)
        else:
            yield None


def expect_count(what: str, found: int, expected: int) -> None:
    """Raise unless there are as many as were published."""
    if found != expected:
        raise UsageError(f"{what}: expected {expected} samples, found {found}.")
