"""The linear programmes of Exact Pareto Optimal search."""

from __future__ import annotations

import numpy as np

from mtobal.solvers.nonnegative import Array, SolverError

_EPSILON = float(np.finfo(np.float64).eps)
# Of the conditions of a linear programme whose coefficients are of order one.
_TOLERANCE = 1e-10


def epo_adjustment(losses: Array, preference: Array) -> tuple[Array, float]:
    r"""Measure how far the losses are from the ray on which ``r_k L_k`` is the same for every task.

    Parameters
    ----------
    losses : array of shape (K,)
        Not negative.
    preference : array of shape (K,)
        The preference r; not negative.

    Returns
    -------
    adjustment : array of shape (K,)
        ``a = r * (log(K l) - mu)`` with ``l = r L / sum(r L)``: how strongly each loss should fall for balance.
    non_uniformity : float
        ``mu = sum_k l_k log(K l_k)``, zero on the ray.
        A loss of zero counts as the smallest positive number, and if all are zero they are in balance.
    """
    products = preference * losses
    if not products.any():
        return np.zeros_like(products), 0.0
    shares = products / products.max()  # first, so that the sum does not overflow
    shares = np.maximum(shares / shares.sum(), np.finfo(np.float64).tiny)
    logs = np.log(len(shares) * shares)
    non_uniformity = float(shares @ logs)
    return preference * (logs - non_uniformity), non_uniformity


def epo_weights(
    gramian: Array, losses: Array, preference: Array, *, threshold: float = 1e-4, relaxed: bool = False
) -> Array | None:
    r"""Find the simplex weights of one step of Exact Pareto Optimal search.

    With the adjustment a and the non-uniformity mu of `epo_adjustment`:

    - away from the ray, ``mu > threshold``, balance: maximise ``w^T G a`` such that the losses with the largest
      ``r_k L_k`` do not grow, and ``(G w)_k >= (G a)_k`` where ``(G a)_k <= 0``; the other losses are free.
      If ``(G a)_k <= 0`` for all k, no loss may grow.
    - on the ray, descent: maximise ``sum_k (G w)_k`` such that no loss grows and, unless `relaxed`,
      ``w^T G a >= min(max_k (G a)_k, 0)``.

    Parameters
    ----------
    gramian : array of shape (K, K)
        ``G = J J^T``.
    losses : array of shape (K,)
        Not negative.
    preference : array of shape (K,)
        The preference r; not negative, not all zero.
    threshold : float
        Where balance gives way to descent.
    relaxed : bool
        Whether descent may leave the ray.

    Returns
    -------
    array of shape (K,), or None
        A vertex of the feasible polytope; None if there is no feasible point.

    References
    ----------
    D. Mahapatra and V. Rajan, Multi-Task Learning with User Preferences: Gradient Descent with Controlled
    Ascent in Pareto Optimization, ICML 2020, equations 23 to 25.

    Examples
    --------
    >>> import numpy as np
    >>> epo_weights(np.eye(2), np.array([4.0, 1.0]), np.array([0.5, 0.5]))
    array([1., 0.])
    """
    norms = np.sqrt(gramian.diagonal())
    longest = norms.max()
    if longest == 0:
        return None
    gramian = gramian / longest / longest
    adjustment, non_uniformity = epo_adjustment(losses, preference)
    toward_balance = gramian @ adjustment
    products = preference * losses
    # Every condition is measured on its own scale: row k by the norm of g_k.
    row_scale = np.where(norms > 0, norms / longest, 1.0)
    if non_uniformity > threshold:
        objective = toward_balance
        bounds = np.where(toward_balance > 0, -np.inf, toward_balance)
        if (toward_balance > 0).any():
            bounds[products >= products.max() * (1 - 1e-12)] = 0.0
        else:
            bounds[:] = 0.0
        rows, lower = gramian / row_scale[:, None], bounds / row_scale
    else:
        objective = gramian.sum(0)
        rows, lower = gramian / row_scale[:, None], np.zeros(len(gramian))
        if not relaxed:
            rows = np.vstack([rows, toward_balance])
            lower = np.append(lower, min(toward_balance.max(), 0.0))
    needed = np.isfinite(lower)
    return _maximum_over_simplex(objective, rows[needed], lower[needed])


def _maximum_over_simplex(objective: Array, rows: Array, lower: Array) -> Array | None:
    """Maximise ``c^T w`` over the simplex subject to ``A w >= b``; None if that is infeasible.

    The simplex method of this module takes a fraction of a millisecond for a few tasks, where a general solver
    takes several; its vertex is checked against the optimality conditions, and a general solver stands in for it.
    """
    scale = np.abs(objective).max()
    objective = objective / scale if scale > 0 else objective
    try:
        basis = _optimal_basis(objective, rows, lower)
        return None if basis is None else _vertex(objective, rows, lower, basis)
    except (SolverError, np.linalg.LinAlgError):
        return _maximum_by_highs(objective, rows, lower)


def _optimal_basis(objective: Array, rows: Array, lower: Array) -> list[int] | None:
    """Walk from vertex to vertex; return the basis of the best, or None if there is no feasible one.

    The variables are w and the surplus ``s = A w - b``; a last, artificial one is added to every condition until
    all of them hold.
    """
    count, size = rows.shape
    first = int((rows - lower[:, None]).min(0).argmax()) if count else int(objective.argmax())
    table = np.zeros((count + 3, size + count + 2))  # conditions, objective, artificial objective
    table[0, :size] = table[0, -1] = 1.0
    table[1 : count + 1, :size] = rows[:, first, None] - rows
    table[1 : count + 1, size:-2] = np.eye(count)
    table[1 : count + 1, -2] = -1.0
    table[1 : count + 1, -1] = rows[:, first] - lower
    table[-2, :size] = objective - objective[first]
    table[-1, -2] = -1.0
    basis = [first, *range(size, size + count)]
    artificial = size + count
    if count and table[1 : count + 1, -1].min() < 0:
        _pivot(table, basis, 1 + int(table[1 : count + 1, -1].argmin()), artificial)
        _improve(table, basis, -1)
        if table[-1, -1] > _TOLERANCE:
            return None
        if artificial in basis:  # at zero: any other variable may take its place
            row = basis.index(artificial)
            _pivot(table, basis, row, int(np.abs(table[row, :-2]).argmax()))
    table[:, -2] = 0.0
    _improve(table, basis, -2)
    return basis


def _improve(table: Array, basis: list[int], goal: int) -> None:
    """Exchange variables while one of them raises the objective in row `goal`."""
    count = len(basis)
    for number in range(50 * count + 50):
        gains = table[goal, :-1]
        entering = int(gains.argmax())
        if gains[entering] <= _TOLERANCE:
            return
        if number > 10 * count:  # Bland's rule, which cannot run in circles
            entering = int((gains > _TOLERANCE).argmax())
        column = table[:count, entering]
        limits = np.divide(table[:count, -1], column, out=np.full(count, np.inf), where=column > _TOLERANCE)
        nearest = limits.min()
        if nearest == np.inf:
            break
        ties = np.flatnonzero(limits <= nearest + _EPSILON)
        _pivot(table, basis, int(min(ties, key=basis.__getitem__)), entering)
    raise SolverError("the simplex method did not end.")


def _pivot(table: Array, basis: list[int], row: int, entering: int) -> None:
    table[row] /= table[row, entering]
    column = table[:, entering].copy()
    column[row] = 0.0
    table -= column[:, None] * table[row]
    basis[row] = entering


def _vertex(objective: Array, rows: Array, lower: Array, basis: list[int]) -> Array:
    """Compute the vertex of a basis afresh, and check that it is feasible and that none is better."""
    count, size = rows.shape
    matrix = np.zeros((count + 1, size + count))
    matrix[0, :size] = 1.0
    matrix[1:, :size] = rows
    matrix[1:, size:] = -np.eye(count)
    costs = np.append(objective, np.zeros(count))
    values = np.linalg.solve(matrix[:, basis], np.append(1.0, lower))
    prices = np.linalg.solve(matrix[:, basis].T, costs[basis])
    if values.min() < -_TOLERANCE or (costs - prices @ matrix).max() > _TOLERANCE:
        raise SolverError("the simplex method lost its way by rounding.")
    weights = np.zeros(size + count)
    weights[basis] = np.maximum(values, 0.0)
    return np.asarray(weights[:size] / weights[:size].sum(), dtype=np.float64)


def _maximum_by_highs(objective: Array, rows: Array, lower: Array) -> Array | None:
    from scipy.optimize import linprog  # costs a quarter of a second, which `import mtobal` does not pay

    solved = linprog(
        -objective,
        A_ub=-rows,
        b_ub=-lower,
        A_eq=np.ones((1, len(objective))),
        b_eq=np.ones(1),
        method="highs",
        options={"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10},
    )
    if solved.status != 0:
        return None
    weights = np.maximum(solved.x, 0.0)
    return np.asarray(weights / weights.sum(), dtype=np.float64)
