"""Projection on the cone of the directions in which no task gets worse."""

from __future__ import annotations

from typing import Literal

import numpy as np

from mtobal.solvers.nonnegative import Array, SolverError, nonnegative_minimum, unit_rows


def dual_cone(gramian: Array, weights: Array, *, solver: Literal["active_set", "cvxpy"] = "active_set") -> Array:
    r"""Project ``J^T u`` on the dual cone ``{d : J d >= 0}`` of the task gradients, for one u or for many.

    The projection is ``d = J^T v`` with ``v = argmin v^T G v`` subject to ``v >= u``: no weight is lowered.
    Its optimality conditions are ``G v >= 0``, ``v >= u`` and ``(v - u)_k (G v)_k = 0``.

    On unit rows, with ``b = n v`` and ``n_k = ||g_k||``, what is added to ``n u`` is the solution of a
    programme over the non-negative orthant with the matrix C of cosines, the same for every u.

    Parameters
    ----------
    gramian : array of shape (K, K)
        ``G = J J^T``, finite.
    weights : array of shape (K,) or (R, K)
        The combination u of the rows to project, or one in each row.
    solver : {"active_set", "cvxpy"}
        ``cvxpy`` leaves the programmes to a general convex solver: slower and less exact, but independent.

    Returns
    -------
    array of the shape of `weights`
        The weights v. The direction ``J^T v`` is unique; the weights are where the rows on which
        ``g_k . d = 0`` are independent. A zero row keeps its weight, and so does every row of a combination
        that already lies in the cone.

    References
    ----------
    D. Lopez-Paz and M. Ranzato, Gradient Episodic Memory for Continual Learning, NeurIPS 2017,
    arXiv:1706.08840, equation 11.
    P. Quinton and V. Rey, Jacobian Descent for Multi-Objective Optimization, arXiv:2406.16232, proposition 1.

    Examples
    --------
    >>> import numpy as np
    >>> gramian = np.array([[1.0, -1.0], [-1.0, 4.0]])
    >>> dual_cone(gramian, np.array([0.5, 0.5]))  # in the cone as it is: G u = (0, 1.5)
    array([0.5, 0.5])
    >>> dual_cone(gramian, np.eye(2))
    array([[1.  , 0.25],
           [1.  , 1.  ]])
    """
    if (weights @ gramian).min() >= 0:
        return np.array(weights)
    cosines, norms = unit_rows(gramian)
    if solver == "cvxpy":
        added = np.array([_added_by_cvxpy(cosines, row) for row in np.atleast_2d(weights * norms)])
        added = added.reshape(weights.shape)
    else:
        added = nonnegative_minimum(cosines, -(weights * norms) @ cosines)
    if np.count_nonzero(norms) < len(norms):
        norms = np.where(norms > 0, norms, 1.0)  # nothing is added to a zero row, which has no linear term
    return np.asarray(weights + added / norms, dtype=np.float64)


def _added_by_cvxpy(cosines: Array, combination: Array) -> Array:
    """Minimise ``||U^T (a + x)||^2`` over ``x >= 0`` for the unit rows U and the combination a."""
    import cvxpy

    scale = np.abs(combination).max()
    if scale == 0:
        return np.zeros_like(combination)
    values, vectors = np.linalg.eigh(cosines)
    factor = vectors * np.sqrt(np.maximum(values, 0.0))
    x = cvxpy.Variable(len(combination), nonneg=True)
    problem = cvxpy.Problem(cvxpy.Minimize(cvxpy.sum_squares(factor.T @ (combination / scale + x))))
    problem.solve(solver=cvxpy.CLARABEL, tol_gap_abs=1e-10, tol_gap_rel=1e-10, tol_feas=1e-10)
    if x.value is None:
        raise SolverError(f"cvxpy gave no solution: {problem.status}.")
    return np.asarray(scale * np.maximum(x.value, 0.0), dtype=np.float64)
