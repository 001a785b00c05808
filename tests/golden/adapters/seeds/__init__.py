"""How to hold each system against its part of ``seeds.json``.

An adapter is a function of that part which asserts; it is listed under the part's key. One file a method.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable

from golden.records import Record

Adapter = Callable[[Record], None]
SEEDS: dict[str, Adapter] = {}


def seed(key: str) -> Callable[[Adapter], Adapter]:
    """List an adapter under a key of the file."""

    def add(adapter: Adapter) -> Adapter:
        assert key not in SEEDS, f"two adapters for {key}"
        SEEDS[key] = adapter
        return adapter

    return add


def load_seeds() -> dict[str, Adapter]:
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    return SEEDS
