"""Strategies that aggregate the gradients of the tasks."""

from mtobal.strategies.gradient.mgda import MGDA
from mtobal.strategies.gradient.pcgrad import PCGrad

__all__ = ["MGDA", "PCGrad"]
