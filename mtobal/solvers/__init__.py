"""Exact solutions of the K x K problems behind the strategies, in float64."""

from mtobal.solvers.min_norm import min_norm
from mtobal.solvers.nonnegative import SolverError, nonnegative_minimum

__all__ = ["SolverError", "min_norm", "nonnegative_minimum"]
