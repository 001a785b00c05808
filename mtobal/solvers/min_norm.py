"""The point of least norm in the convex hull of the task gradients."""

from __future__ import annotations

from typing import Literal

import numpy as np

from mtobal.solvers.nonnegative import Array, nonnegative_minimum, unit_rows


def min_norm(gramian: Array, *, solver: Literal["active_set", "cvxpy"] = "active_set") -> Array:
    r"""Find the weights of the min-norm point of ``conv{g_1, ..., g_K}``.

    Solves ``min_w w^T G w`` over the simplex ``w >= 0, sum w = 1``. With ``d = J^T w`` the optimality
    conditions are ``g_k . d >= ||d||^2`` for every k, with equality where ``w_k > 0``.

    The rows are scaled to unit length first, ``w = b / n`` with ``n_k = ||g_k||``: for any ``t > 0`` the
    minimum of ``||J^T v||^2 + t^2 (1 - sum v)^2`` over ``v >= 0`` is a positive multiple of w, and in b it has
    the matrix ``C + q q^T`` with the cosines C and ``q = t / n``. ``t = min n`` keeps every entry at most one.

    Parameters
    ----------
    gramian : array of shape (K, K)
        ``G = J J^T``, finite.
    solver : {"active_set", "cvxpy"}
        ``cvxpy`` leaves the programme to a general convex solver: slower and less exact, but independent.

    Returns
    -------
    array of shape (K,)
        Simplex weights. The point is unique; the weights are where the optimal face is a simplex.
        Zero rows share all the weight equally: the point is then zero.

    References
    ----------
    J.-A. Desideri, Multiple-gradient descent algorithm for multiobjective optimization, 2012.
    P. Wolfe, Finding the nearest point in a polytope, 1976.

    Examples
    --------
    >>> import numpy as np
    >>> min_norm(np.array([[4.0, 0.0], [0.0, 9.0]]))
    array([0.69230769, 0.30769231])
    """
    if len(gramian) == 1:
        return np.ones(1)
    if len(gramian) == 2 and solver == "active_set":
        return _two_rows(gramian)
    cosines, norms = unit_rows(gramian)
    if not norms.all():
        zero = norms == 0
        return np.asarray(zero / zero.sum(), dtype=np.float64)
    if solver == "cvxpy":
        from mtobal.solvers import convex

        return convex.min_norm(gramian)
    scale = norms.min() / norms
    weights = nonnegative_minimum(cosines + scale * scale[:, None], scale) * scale
    return np.asarray(weights / weights.sum(), dtype=np.float64)


def _two_rows(gramian: Array) -> Array:
    """Take the foot of the perpendicular from the origin on the line through both rows, or the nearer end."""
    (first, product), (_, second) = gramian.tolist()
    if first + second - 2 * product <= np.finfo(np.float64).eps * max(first, second):
        return np.array([0.5, 0.5])  # duplicates
    shares = np.array([max(second - product, 0.0), max(first - product, 0.0)])
    return np.asarray(shares / shares.sum(), dtype=np.float64)
