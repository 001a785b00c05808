"""Multi-task optimisation: train one network on several losses without letting one starve another."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from mtobal import strategies
from mtobal.balancer import Balancer
from mtobal.errors import UsageError
from mtobal.strategies import aggregate, weights

if TYPE_CHECKING:
    from mtobal import callbacks

    __version__: str

__all__ = ["Balancer", "UsageError", "__version__", "aggregate", "callbacks", "strategies", "weights"]


def __getattr__(name: str) -> Any:
    """Load what costs time when it is first asked for."""
    if name == "callbacks":
        return importlib.import_module("mtobal.callbacks")
    if name == "__version__":
        from importlib.metadata import version

        return version("mtobal")
    raise AttributeError(f"module 'mtobal' has no attribute {name!r}")
