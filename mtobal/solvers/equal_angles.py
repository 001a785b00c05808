"""The direction that makes the same angle with every row."""

from __future__ import annotations

import numpy as np

from mtobal.solvers.nonnegative import Array, unit_rows

_EPSILON = float(np.finfo(np.float64).eps)


def equal_angles(gramian: Array) -> Array:
    r"""Find the weights of the direction ``x = J^T w`` on which every unit row has the projection one.

    On unit rows, ``b = n w`` with the norms n, the matrix of cosines C gives ``C b = 1``. Where the rows are
    dependent, ``b = pinv(C) 1``: x is then the shortest of the directions whose projections are nearest to one.

    Parameters
    ----------
    gramian : array of shape (K, K)
        ``G = J J^T``, finite.

    Returns
    -------
    array of shape (K,)
        A zero row has no part in it. All zero where the projections of no direction are positive on the whole, as
        for two opposite rows.

    Examples
    --------
    >>> import numpy as np
    >>> equal_angles(np.array([[4.0, 1.2], [1.2, 1.0]]))
    array([0.3125, 0.625 ])
    >>> equal_angles(np.array([[1.0, -2.0], [-2.0, 4.0]]))
    array([0., 0.])
    """
    cosines, norms = unit_rows(gramian)
    if norms.all():
        return _coefficients(cosines) / norms
    rows = norms.nonzero()[0]
    weights = np.zeros(len(gramian))
    weights[rows] = _coefficients(cosines[rows][:, rows]) / norms[rows]
    return weights


def _coefficients(cosines: Array) -> Array:
    """Solve ``C b = 1``, by least squares where C is singular to rounding."""
    noise = 10 * len(cosines) * _EPSILON
    try:
        inverse = np.linalg.inv(cosines)
    except np.linalg.LinAlgError:
        return _least_squares(cosines, noise)
    # One over a diagonal entry is the squared distance of that row from the span of the others.
    distances = inverse.diagonal()
    if len(cosines) and not (distances.min() > 0 and distances.max() * noise < 1):
        return _least_squares(cosines, noise)
    b = inverse.sum(1)
    b += inverse @ (1.0 - cosines @ b)  # an inverse leaves a residual that grows with the condition number
    return np.asarray(b)


def _least_squares(cosines: Array, noise: float) -> Array:
    values, vectors = np.linalg.eigh(cosines)
    kept = values > noise * values[-1]
    shares = vectors[:, kept].sum(0)
    if shares @ shares <= 1e-16 * len(cosines):
        return np.zeros(len(cosines))
    return np.asarray(vectors[:, kept] @ (shares / values[kept]))
