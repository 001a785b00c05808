"""Strategies that take the gradients at other points, to end in flat minima."""

from mtobal.strategies.sharpness.f_mtl import FMTL
from mtobal.strategies.sharpness.sam import SAM
from mtobal.strategies.sharpness.samo import SAMO

__all__ = ["FMTL", "SAM", "SAMO"]
