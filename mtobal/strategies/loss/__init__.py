"""Strategies that weigh the losses."""

from mtobal.strategies.loss.ew import EW
from mtobal.strategies.loss.static import Static
from mtobal.strategies.loss.uw import UW

__all__ = ["EW", "UW", "Static"]
