"""The direction near the mean gradient that serves the worst-off task best."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

from mtobal.solvers.equilibrium import STATIONARY, squared_distance
from mtobal.solvers.nonnegative import Array, SolverError, nonnegative_minimum, unit_rows

_EPSILON = float(np.finfo(np.float64).eps)
# Block pivoting settles in about five rounds, or it runs in circles.
_ROUNDS = 15
# Each round of the search for the level changes the support or ends it.
_SEARCH = 200


def conflict_averse(gramian: Array, c: float, *, solver: Literal["active_set", "cvxpy"] = "active_set") -> Array:
    r"""Find the multipliers v >= 0 of ``max_d min_k g_k . d  subject to  ||d - g_0|| <= c ||g_0||``.

    With the mean gradient ``g_0`` the solution is ``d = g_0 + J^T v``. For a level t of the worst task, the d
    nearest to ``g_0`` with ``J d >= t`` has multipliers that solve a quadratic programme in ``v >= 0``, piecewise
    linear in t, and its distance from ``g_0`` grows with t: the t sought is the one where it is ``c ||g_0||``. On
    the right support, t is the root of a quadratic equation.

    In x = n v, ``n_k = ||g_k||``, the programme has the matrix of cosines C. The optimality conditions are
    ``x >= 0``, ``y = C x + r - t / n >= 0`` and ``x^T y = 0`` with ``r_k = u_k . g_0``, u the unit rows.

    Parameters
    ----------
    gramian : array of shape (K, K)
        ``G = J J^T``, finite.
    c : float
        Not negative.
    solver : {"active_set", "cvxpy"}
        ``cvxpy`` solves the dual over the simplex by a general convex solver: slower and less exact, but
        independent.

    Returns
    -------
    array of shape (K,)
        A positive multiple of the simplex weights of the dual. All zero if ``c`` or ``g_0`` is zero. Where no d in
        the ball has ``J d > 0``, as for a zero row or rows with the origin in their hull, all d in the ball with
        ``J d >= 0`` are equally good, and the multipliers are those of the one nearest to ``g_0``; if there is
        none, there is a unique best d with a negative level, as ever.

    References
    ----------
    B. Liu, X. Liu, X. Jin, P. Stone and Q. Liu, Conflict-Averse Gradient Descent for Multi-task Learning, NeurIPS
    2021, arXiv:2110.14048.

    Examples
    --------
    >>> import numpy as np
    >>> gramian = np.array([[4.0, 0.0], [0.0, 9.0]])
    >>> np.round(conflict_averse(gramian, c=0.5), 4)  # the norm of J^T v is half that of the mean gradient
    array([0.4507, 0.    ])
    """
    if solver == "cvxpy":
        from mtobal.solvers import convex

        return convex.conflict_averse(gramian, c)
    cosines, norms = unit_rows(gramian)
    rows = norms.nonzero()[0]
    zero_row = len(rows) < len(norms)
    if zero_row:
        cosines, norms = cosines[rows][:, rows], norms[rows]
    v = np.zeros(len(gramian))
    if not len(rows):
        return v
    lengths = norms / norms.max()
    products = cosines @ lengths / len(gramian)  # of the unit rows with g_0, in units of the longest row
    square = lengths @ products / len(gramian)
    if c == 0.0 or square <= 10 * _EPSILON * (lengths.sum() / len(gramian)) ** 2:
        return v
    radius = c * math.sqrt(square)
    levels = lengths.min() / lengths  # per unit row; the level itself is in units of the shortest row
    x = None if zero_row else _pivot(cosines, products, levels, radius)
    if x is None:
        x = _search(cosines, products, levels, radius, zero_row=zero_row)
    v[rows] = x / lengths
    return v


def _pivot(cosines: Array, products: Array, levels: Array, radius: float) -> Array | None:
    """Guess the support, solve on it, and exchange all variables on the wrong side at once; or give up."""
    size = len(levels)
    right = np.array([levels, products]).T
    inside = np.zeros(size, dtype=bool)
    inside[(products / levels).argmin()] = True
    for _ in range(_ROUNDS):
        index = inside.nonzero()[0]
        rows = cosines[index]
        try:
            solved = np.linalg.solve(rows[:, index], right[index])
        except np.linalg.LinAlgError:
            return None
        level = _level(np.asarray(solved), right[index], radius)
        if math.isnan(level):
            return None
        on_support = level * solved[:, 0] - solved[:, 1]
        signs = on_support @ rows + products - level * levels
        total = np.abs(on_support).sum()
        signs[index] = on_support
        wrong = signs < -10 * size * _EPSILON * (total + radius)
        if not np.count_nonzero(wrong):
            # The ratio bounds the distance of the hull of the unit rows from the origin.
            if radius**2 <= STATIONARY * total**2:
                return None
            return np.where(inside, np.maximum(signs, 0.0), 0.0)
        inside ^= wrong
    return None


def _search(cosines: Array, products: Array, levels: Array, radius: float, *, zero_row: bool) -> Array:
    """Bracket the level, and follow the roots that the supports on the way give."""
    lower = (products / levels).min()  # where g_0 itself is the solution
    upper = ((products + radius) / levels).min()  # by duality, from the vertices of the simplex
    if zero_row or squared_distance(cosines) <= STATIONARY:
        # No direction increases all tasks at once.
        if lower >= 0.0:
            return np.zeros(len(levels))
        x, inside = _nearest(cosines, -products, radius)
        if inside:
            return x
        upper = min(upper, 0.0)
    level = 0.5 * (lower + upper)
    for _ in range(_SEARCH):
        x, inside = _nearest(cosines, level * levels - products, radius)
        lower, upper = (level, upper) if inside else (lower, level)
        index = x.nonzero()[0]
        right = np.array([levels[index], products[index]]).T
        solved = np.linalg.lstsq(cosines[index][:, index], right, rcond=None)[0]
        previous, level = level, _level(np.asarray(solved), right, radius)
        noise = 4 * _EPSILON * max(abs(lower), abs(upper))
        if abs(level - previous) <= noise or upper - lower <= noise:
            return x
        if not lower < level < upper:
            level = 0.5 * (lower + upper)
    raise SolverError(f"the level of a conflict-averse direction of {len(levels)} tasks was not found.")


def _nearest(cosines: Array, offsets: Array, radius: float) -> tuple[Array, bool]:
    """Find the shortest y with ``U y >= offsets``, and whether it lies within the radius.

    Least-distance programming: with ``q = offsets / radius``, the minimum of ``||U^T u||^2 + (1 - q^T u)^2`` over
    ``u >= 0`` is its residual ``rho = 1 - q^T u``. The multipliers of the unit rows U are ``radius u / rho``, the
    length of y is ``radius sqrt(1 / rho - 1)``, and there is no y at all where rho is zero.
    """
    # The others hold for every y within the radius.
    index = (offsets > -radius).nonzero()[0]
    scaled = offsets[index] / radius
    u = nonnegative_minimum(cosines[index][:, index] + np.outer(scaled, scaled), scaled)
    rest = 1.0 - float(scaled @ u)
    x = np.zeros(len(offsets))
    x[index] = radius * u / max(rest, _EPSILON)
    return x, rest >= 0.5


def _level(solved: Array, right: Array, radius: float) -> float:
    """Return the larger root t of ``||J^T v(t)|| = radius``, with v linear in t on a support.

    Where the support is too large for that, the t where the norm is least; NaN on an empty or dependent support.
    """
    (a, b), (_, c) = (right.T @ solved).tolist()
    return (b + math.sqrt(max(b * b - a * (c - radius**2), 0.0))) / a if a > 0 else math.nan
