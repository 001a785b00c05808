"""Convex quadratic programmes over the non-negative orthant, by an exact active set."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


class SolverError(RuntimeError):
    """An iteration did not end. It means a defect or a non-finite input, never an ordinary problem."""


def nonnegative_minimum(hessian: Array, linear: Array) -> Array:
    r"""Solve ``min_x 1/2 x^T H x - q^T x  subject to  x >= 0``.

    The optimality conditions are ``x >= 0``, ``H x - q >= 0`` and ``x_k (H x - q)_k = 0``. Variables enter the
    support one at a time, by the largest violated condition, and leave it where the unconstrained minimum on
    the support would make them negative, until the conditions hold to rounding.

    Parameters
    ----------
    hessian : array of shape (K, K)
        Symmetric positive semi-definite, with a diagonal of order one.
    linear : array of shape (K,)
        The vector q. The problem must be bounded: ``q^T x <= 0`` wherever ``x >= 0`` and ``H x = 0``.

    Returns
    -------
    array of shape (K,)

    Raises
    ------
    SolverError
        If the active set does not settle.

    References
    ----------
    C. L. Lawson and R. J. Hanson, Solving Least Squares Problems, 1974, chapter 23: the same walk through
    supports, there on the factor of H.
    """
    size = len(linear)
    x = np.zeros(size)
    support = np.zeros(size, dtype=bool)
    refused = np.zeros(size, dtype=bool)
    epsilon = np.finfo(np.float64).eps
    for _ in range(30 * size + 30):
        descent = linear - hessian @ x
        tolerance = 10 * size * epsilon * max(np.abs(linear).max(), np.abs(x).max())
        candidates = np.where(support | refused, -np.inf, descent)
        entering = int(np.argmax(candidates))
        if not candidates[entering] > tolerance:
            return x
        support[entering] = True
        before = x
        x = _minimum_on_support(hessian, linear, x, support)
        # A variable that rounding throws out at once would be chosen again for ever.
        if support[entering]:
            refused[:] = False
        else:
            refused[entering] = True
            x = before if not np.isfinite(x).all() else x
    raise SolverError(f"active set of a quadratic programme with {size} variables did not settle.")


def _minimum_on_support(hessian: Array, linear: Array, x: Array, support: NDArray[np.bool_]) -> Array:
    """Move from x to the minimum on the support, dropping the variables that reach zero on the way."""
    while support.any():
        index = np.flatnonzero(support)
        target = np.zeros_like(x)
        target[index] = _solve_symmetric(hessian[np.ix_(index, index)], linear[index])
        leaving = index[target[index] <= 0]
        if not len(leaving):
            return target
        step = np.min(x[leaving] / (x[leaving] - target[leaving] + np.finfo(np.float64).tiny))
        x = np.where(support, x + step * (target - x), 0.0)
        gone = leaving[x[leaving] <= 10 * np.finfo(np.float64).eps * np.abs(x).max()]
        if not len(gone):
            gone = leaving[[int(np.argmin(x[leaving]))]]
        x[gone] = 0.0
        support[gone] = False
    return np.zeros_like(x)


def _solve_symmetric(matrix: Array, right: Array) -> Array:
    try:
        return np.asarray(np.linalg.solve(matrix, right), dtype=np.float64)
    except np.linalg.LinAlgError:
        return np.asarray(np.linalg.lstsq(matrix, right, rcond=None)[0], dtype=np.float64)
