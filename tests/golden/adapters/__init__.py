"""How to run each strategy against its golden records.

An adapter is a function of a record that asserts; it is listed under the record's name of the strategy, beside
the name under which the strategy is registered here.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable

from golden.records import Record

Adapter = Callable[[Record], None]
ADAPTERS: dict[str, Adapter] = {}


def golden(*names: str) -> Callable[[Adapter], Adapter]:
    """List an adapter under the names that records use."""

    def add(adapter: Adapter) -> Adapter:
        for name in names:
            assert name not in ADAPTERS, f"two adapters for {name}"
            ADAPTERS[name] = adapter
        return adapter

    return add


def load_adapters() -> dict[str, Adapter]:
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    return ADAPTERS
