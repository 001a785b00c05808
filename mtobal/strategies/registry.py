"""The catalogue: every strategy under its name, with its card."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

from mtobal.errors import UsageError, unknown_name
from mtobal.options import enter
from mtobal.strategies.base import Strategy
from mtobal.strategies.card import Card

_REGISTRY: dict[str, type[Strategy]] = {}
_StrategyType = TypeVar("_StrategyType", bound=type[Strategy])


def register(name: str) -> Callable[[_StrategyType], _StrategyType]:
    """Register a strategy class under a name, so that specs, the command line and the tests find it.

    Parameters
    ----------
    name : str
        Lower snake case.

    Examples
    --------
    >>> import torch, mtobal
    >>> @mtobal.strategies.register("first_only")
    ... class FirstOnly(mtobal.strategies.Aggregation):
    ...     "Follow the first task alone."
    ...     def solve(self, gramian, step):
    ...         return torch.eye(len(gramian))[0]
    >>> mtobal.aggregate(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), "first_only")
    tensor([1., 2.])
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise UsageError(f"strategy name {name!r} is not lower snake case.")

    def add(cls: _StrategyType) -> _StrategyType:
        if not (isinstance(cls, type) and issubclass(cls, Strategy) and hasattr(cls, "place")):
            raise UsageError(f"strategy {name!r} must be a LossWeighting or an Aggregation, not {cls!r}.")
        enter(_REGISTRY, "strategy", name, cls)
        cls.card = replace(
            cls.card,
            name=name,
            place=cls.place,
            summary=cls.card.summary or (inspect.getdoc(cls) or "").split("\n")[0],
            example=cls.card.example or name,
            reads=cls.reads,
            forward_passes=cls.forward_passes,
            backward_passes=cls.backward_passes,
            options=options(cls),
        )
        return cls

    return add


def lookup(name: str) -> type[Strategy]:
    """Return the class registered under `name`."""
    if name not in _REGISTRY:
        raise unknown_name("strategy", name, _REGISTRY)
    return _REGISTRY[name]


def available() -> dict[str, Card]:
    """Return the card of every registered strategy by its name.

    Examples
    --------
    >>> import mtobal
    >>> mtobal.strategies.available()["pcgrad"].place
    'gradient aggregation'
    """
    return {name: _REGISTRY[name].card for name in sorted(_REGISTRY)}


def options(cls: type[Strategy]) -> dict[str, Any]:
    """Return the options of a strategy class with their defaults, those of its base classes included."""
    found: dict[str, Any] = {}
    for owner in cls.__mro__:
        if "__init__" not in vars(owner):
            continue
        forwards = False
        for parameter in list(inspect.signature(vars(owner)["__init__"]).parameters.values())[1:]:
            if parameter.kind is inspect.Parameter.VAR_KEYWORD:
                forwards = True
            else:
                found.setdefault(parameter.name, parameter.default)
        if not forwards:
            break
    return found
