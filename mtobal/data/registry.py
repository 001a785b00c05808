"""Data sets by name, for recipes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mtobal.data.digits import digits
from mtobal.data.multitask import MultiTaskData
from mtobal.errors import unknown_name
from mtobal.options import resolve_options

_DATA_SETS: dict[str, Callable[..., MultiTaskData]] = {"digits": digits}


def available() -> list[str]:
    """Return the names of all data sets.

    Examples
    --------
    >>> available()
    ['digits']
    """
    return sorted(_DATA_SETS)


def lookup(name: str) -> Callable[..., MultiTaskData]:
    """Return the function that loads the data set; its keyword-only parameters are the options."""
    if name not in _DATA_SETS:
        raise unknown_name("data set", name, _DATA_SETS)
    return _DATA_SETS[name]


def load(name: str, **options: Any) -> MultiTaskData:
    """Load a data set by name.

    Examples
    --------
    >>> data = load("digits", train_pairs=100)
    >>> len(data.train), [task.name for task in data.tasks]
    (100, ['left', 'right'])
    """
    function = lookup(name)
    return function(**resolve_options(f"data set {name!r}", function, options))
