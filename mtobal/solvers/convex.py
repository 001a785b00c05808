"""The same problems through cvxpy: an independent route, slower and less exact, for comparison.

Only the ordinary case is solved here: rows that are not zero and do not have the origin in their hull.
"""

from __future__ import annotations

import cvxpy
import numpy as np

from mtobal.solvers.nonnegative import Array

# Far below the defaults; what CLARABEL cannot reach, it reports as "almost solved" and cvxpy as inaccurate.
_TOLERANCES = {"tol_gap_abs": 1e-13, "tol_gap_rel": 1e-13, "tol_feas": 1e-13}


def min_norm(gramian: Array) -> Array:
    """Minimise ``||J^T w||^2`` over the simplex."""
    norms, factor = _unit_factor(gramian)
    b = cvxpy.Variable(len(gramian), nonneg=True)
    _minimise(cvxpy.sum_squares(factor.T @ b), [(norms.min() / norms) @ b == 1])
    w = b.value / norms
    return np.asarray(w / w.sum())


def equilibrium(gramian: Array, alpha: float) -> Array:
    """Minimise ``1/2 ||J^T w||^2 - sum_k U(w_k)``, U being the utility of `mtobal.solvers.equilibrium`."""
    norms, factor = _unit_factor(gramian)
    scale = norms.max()
    power = 1.0 / alpha
    b = cvxpy.Variable(len(gramian))
    if power == 1.0:
        utility = cvxpy.sum(cvxpy.log(b))
    else:
        utility = (norms / scale) ** (power - 1.0) @ cvxpy.power(b, 1.0 - power) / (1.0 - power)
    _minimise(cvxpy.sum_squares(factor.T @ b) / 2 - utility, [])
    return np.asarray(b.value * scale / norms * scale ** (-2.0 / (1.0 + power)))


def conflict_averse(gramian: Array, c: float) -> Array:
    """Minimise ``g_w . g_0 + c ||g_0|| ||g_w||`` over the simplex, and scale w to the multipliers."""
    norms, factor = _unit_factor(gramian)
    lengths = norms / norms.max()
    mean = factor.T @ lengths / len(gramian)
    radius = c * np.linalg.norm(mean)
    b = cvxpy.Variable(len(gramian), nonneg=True)
    combined = factor.T @ b
    _minimise(mean @ combined + radius * cvxpy.norm(combined), [(lengths.min() / lengths) @ b == 1])
    return np.asarray(radius / np.linalg.norm(combined.value) * b.value / lengths)


def _unit_factor(gramian: Array) -> tuple[Array, Array]:
    """Return the norms of the rows, and a matrix F with the cosines ``F F^T``."""
    norms = np.sqrt(gramian.diagonal())
    values, vectors = np.linalg.eigh(gramian / norms[:, None] / norms)
    return norms, vectors * np.sqrt(np.maximum(values, 0.0))


def _minimise(objective: cvxpy.Expression, constraints: list[cvxpy.Constraint]) -> None:
    problem = cvxpy.Problem(cvxpy.Minimize(objective), constraints)
    try:
        problem.solve(solver=cvxpy.CLARABEL, **_TOLERANCES)
    except cvxpy.SolverError:  # stuck on the last digits of an ill-conditioned problem
        problem.solve(solver=cvxpy.CLARABEL)
    if problem.status not in (cvxpy.OPTIMAL, cvxpy.OPTIMAL_INACCURATE):
        raise RuntimeError(f"cvxpy: {problem.status}")
