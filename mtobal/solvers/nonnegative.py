"""Convex quadratic programmes over the non-negative orthant, by an exact active set."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from mtobal.solvers.tableau import walk_one, walk_rows

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
Index = NDArray[np.intp]

_EPSILON = float(np.finfo(np.float64).eps)
# Block pivoting settles in a handful of rounds, also for a hundred variables, or it runs in circles.
_ROUNDS = 15
# Up to this size it is cheaper to solve blocks of full size than to pick out those of the supports.
_SMALL = 20
# Added to the diagonal of a matrix that is not definite: far above rounding, far below the eigenvalues that count.
_SHIFT = 1e-9
# Rows of unit length that span nearly as many dimensions as there are rows have squared cosines that add up to
# less than this for each row. With fewer dimensions, supports are hard to guess.
_NEARLY_FULL = 2.5


class SolverError(RuntimeError):
    """An iteration did not end. It means a defect or a non-finite input, never an ordinary problem."""


def unit_rows(gramian: Array) -> tuple[Array, Array]:
    """Scale the rows of J to unit length.

    Parameters
    ----------
    gramian : array of shape (K, K)
        ``G = J J^T``.

    Returns
    -------
    cosines : array of shape (K, K)
        Gramian of the scaled rows. A zero row becomes a unit row that is orthogonal to all the others.
    norms : array of shape (K,)
        The norms of the rows; rows that are shorter than the longest by 150 orders of magnitude count as zero.
    """
    norms = np.sqrt(gramian.diagonal())
    zero = norms <= 1e-150 * norms.max()
    if not np.count_nonzero(zero):
        inverse = 1.0 / norms
        return gramian * inverse * inverse[:, None], norms
    inverse = np.divide(1.0, norms, out=np.zeros_like(norms), where=~zero)
    return gramian * inverse * inverse[:, None] + np.diag(zero), np.where(zero, 0.0, norms)


def nonnegative_minimum(hessian: Array, linear: Array) -> Array:
    r"""Solve ``min_x 1/2 x^T H x - q^T x  subject to  x >= 0``, for one q or for many.

    The optimality conditions are ``x >= 0``, ``H x - q >= 0`` and ``x_k (H x - q)_k = 0``: the problem is to
    find the support of x. Block principal pivoting guesses it, solves, and exchanges all variables on the wrong
    side at once. What that does not settle, as where H is not definite, goes the way of Lawson and Hanson:
    variables enter one at a time, and the objective falls with every support. They walk on a tableau, or, where
    that is lost to rounding, by solving anew on every support.

    Parameters
    ----------
    hessian : array of shape (K, K)
        Symmetric positive semi-definite, with a diagonal of order one.
    linear : array of shape (K,) or (R, K)
        The vector q, or one in each row, in the range of H, as it is where both are inner products with the same
        rows: then a variable whose row depends on those of the support is never needed.

    Returns
    -------
    array of the shape of `linear`

    Raises
    ------
    SolverError
        If the active set does not settle.

    References
    ----------
    J. J. Judice and F. M. Pires, A block principal pivoting algorithm for large-scale strictly monotone linear
    complementarity problems, 1994.
    C. L. Lawson and R. J. Hanson, Solving Least Squares Problems, 1974, chapter 23: the same walk, there on a
    factor of H.

    Examples
    --------
    >>> import numpy as np
    >>> nonnegative_minimum(np.array([[2.0, 1.0], [1.0, 2.0]]), np.array([[2.0, 0.0], [3.0, 3.0]]))
    array([[1., 0.],
           [1., 1.]])
    """
    definite = _is_definite(hessian)
    if linear.ndim == 1:
        solution = _block_pivoting(hessian, linear) if definite else None
        if solution is None:
            solution = walk_one(hessian, linear)
        return _walk(hessian, linear) if solution is None else solution
    if definite:
        solutions, unsettled = _pivot_rows(hessian, linear)
    elif np.vdot(hessian, hessian) < _NEARLY_FULL * len(hessian):
        solutions, unsettled = _pivot_rows_shifted(hessian, linear)
    else:
        solutions, unsettled = np.zeros_like(linear), np.arange(len(linear))
    if len(unsettled):
        solutions[unsettled], failing = walk_rows(hessian, linear[unsettled])
        for row in unsettled[failing]:
            solutions[row] = _walk(hessian, linear[row])
    return solutions


def _is_definite(matrix: Array) -> bool:
    """Whether every pivot of the Cholesky factor stands clear of rounding."""
    try:
        pivots: list[float] = np.linalg.cholesky(matrix).diagonal().tolist()
    except np.linalg.LinAlgError:
        return False
    return min(pivots) ** 2 > 20 * len(pivots) * _EPSILON


def _block_pivoting(hessian: Array, linear: Array) -> Array | None:
    """Exchange all variables on the wrong side at once, or give up with None."""
    tolerance = 10 * len(linear) * _EPSILON
    size_of_linear = float(linear @ linear)
    inside = linear > 0
    for _ in range(_ROUNDS):
        index = inside.nonzero()[0]
        rows = hessian[index]
        try:
            on_support = np.linalg.solve(rows[:, index], linear[index])
        except np.linalg.LinAlgError:  # another order of elimination than that of the factor met a zero
            return None
        signs = on_support @ rows - linear
        noise = tolerance * math.sqrt(size_of_linear + float(on_support @ on_support))
        # Outside the support the variable is zero, and inside it the gradient is: one sign tells for both.
        signs[index] = on_support
        wrong = signs < -noise
        if not np.count_nonzero(wrong):
            return np.where(inside, np.maximum(signs, 0.0), 0.0)
        inside ^= wrong
    return None


def _descend(hessian: Array, linear: Array, steps: int) -> Array:
    """Come near the minima by accelerated projected gradient descent."""
    # The norm of H is at most the root of the Frobenius norm of H H, and not much less.
    rate = 1.0 / math.sqrt(np.linalg.norm(hessian @ hessian))
    x = ahead = np.zeros_like(linear)
    for step in range(steps):
        before, x = x, np.maximum(ahead + rate * (linear - ahead @ hessian), 0.0)
        ahead = x + step / (step + 3) * (x - before)
    return x


def _pivot_rows(hessian: Array, linear: Array) -> tuple[Array, Index]:
    """Do the same for all rows of `linear` at once; return solutions and open rows."""
    # A few steps of descent cost less than the rounds of solving that a better guess saves.
    steps = min(20, (len(hessian) - 1) // 3)
    inside = (_descend(hessian, linear, steps) if steps else linear) > 0
    solutions = np.zeros_like(linear)
    pending = np.arange(len(linear))
    tolerance = 10 * len(hessian) * _EPSILON
    squares = np.einsum("ij,ij->i", linear, linear)
    for _ in range(_ROUNDS):
        try:
            x = _minima_on_supports(hessian, linear, inside)
        except np.linalg.LinAlgError:  # as in `_block_pivoting`
            break
        solutions[pending] = x
        noise = tolerance * np.sqrt(squares + np.einsum("ij,ij->i", x, x))
        wrong = x + (x @ hessian - linear) < -noise[:, None]
        still = wrong.any(1)
        pending = pending[still]
        if not len(pending):
            break
        linear, squares, inside = linear[still], squares[still], (inside ^ wrong)[still]
    return np.maximum(solutions, 0.0), pending


def _minima_on_supports(hessian: Array, linear: Array, inside: Mask) -> Array:
    """Minimise over the variables inside the support of each row of `linear`, the others being zero."""
    size = len(hessian)
    right = np.where(inside, linear, 0.0)
    if size <= _SMALL:
        blocks = np.where(inside[:, :, None] & inside[:, None, :], hessian, np.eye(size))
        return np.asarray(np.linalg.solve(blocks, right[:, :, None])[:, :, 0], dtype=np.float64)
    # Blocks as large as the largest support; the smaller ones are filled up from an identity behind H.
    extended = np.eye(2 * size)
    extended[:size, :size] = hessian
    counts = inside.sum(1)
    slots = np.arange(counts.max())
    members = np.argsort(~inside, axis=1, kind="stable")[:, : len(slots)]
    index = np.where(slots < counts[:, None], members, size + slots)
    right = np.take_along_axis(np.hstack([right, np.zeros_like(right)]), index, axis=1)
    minima = np.zeros((len(linear), 2 * size))
    blocks = extended[index[:, :, None], index[:, None, :]]
    np.put_along_axis(minima, index, np.linalg.solve(blocks, right[:, :, None])[:, :, 0], axis=1)
    return minima[:, :size]


def _pivot_rows_shifted(hessian: Array, linear: Array) -> tuple[Array, Index]:
    """Do the same where H is not definite: shift its diagonal, and take that back by a step of refinement."""
    shifted = hessian + _SHIFT * np.eye(len(hessian))
    solutions, _ = _pivot_rows(shifted, linear)
    try:
        solutions += _minima_on_supports(shifted, linear - solutions @ hessian, solutions > 0)
    except np.linalg.LinAlgError:  # by rounding, H has eigenvalues below zero
        return solutions, np.arange(len(linear))
    solutions = np.maximum(solutions, 0.0)
    gradient = solutions @ hessian - linear
    noise = 10 * len(hessian) * _EPSILON * np.sqrt((solutions**2 + linear**2).sum(1))
    violation = np.where(solutions > 0, np.abs(gradient), -gradient).max(1)
    return solutions, (violation > noise).nonzero()[0]


def _walk(hessian: Array, linear: Array) -> Array:
    """Let variables enter the support one at a time, by the largest violated condition."""
    size = len(linear)
    x = np.zeros(size)
    support = np.zeros(size, dtype=bool)
    refused = np.zeros(size, dtype=bool)
    seen = {support.tobytes()}
    for _ in range(30 * size + 30):
        descent = linear - hessian @ x
        noise = 10 * size * _EPSILON * max(np.abs(linear).max(), np.abs(x).max())
        candidates = np.where(support | refused, -np.inf, descent)
        entering = int(candidates.argmax())
        if candidates[entering] <= noise:
            return x
        if _is_dependent(hessian, support, entering):
            refused[entering] = True
            continue
        support[entering] = True
        x = _minimum_on_support(hessian, linear, x, support)
        if not support[entering]:
            refused[entering] = True  # thrown out at once, by rounding: it would be chosen again for ever
            continue
        refused[:] = False
        # In exact arithmetic the objective falls with every support, so none comes twice. One that does differs
        # from the last by rounding alone.
        if support.tobytes() in seen:
            return x
        seen.add(support.tobytes())
    raise SolverError(f"active set of a quadratic programme with {size} variables did not settle.")


def _is_dependent(hessian: Array, support: Mask, entering: int) -> bool:
    """Whether the row of a variable is a combination of those of the support, to rounding."""
    index = support.nonzero()[0]
    column = hessian[index, entering]
    remainder = hessian[entering, entering] - column @ _solve(hessian[index][:, index], column)
    return bool(remainder <= 10 * _EPSILON)


def _minimum_on_support(hessian: Array, linear: Array, x: Array, support: Mask) -> Array:
    """Move from x to the minimum on the support, dropping the variables that reach zero on the way."""
    while support.any():
        index = support.nonzero()[0]
        target = np.zeros_like(x)
        target[index] = _solve(hessian[index][:, index], linear[index])
        leaving = index[target[index] <= 0]
        if not len(leaving):
            return target
        ratios = x[leaving] / (x[leaving] - target[leaving] + np.finfo(np.float64).tiny)
        x = np.where(support, x + ratios.min() * (target - x), 0.0)
        gone = leaving[x[leaving] <= 10 * _EPSILON * np.abs(x).max()]
        if not len(gone):
            gone = leaving[[int(ratios.argmin())]]
        x[gone] = 0.0
        support[gone] = False
    return np.zeros_like(x)


def _solve(matrix: Array, right: Array) -> Array:
    """Solve a system whose rows may be dependent to the last digit."""
    try:
        return np.asarray(np.linalg.solve(matrix, right), dtype=np.float64)
    except np.linalg.LinAlgError:
        return np.asarray(np.linalg.lstsq(matrix, right, rcond=None)[0], dtype=np.float64)
