"""Hypervolume of a set of points."""

from __future__ import annotations

import numpy as np

from mtobal.solvers.nonnegative import Array


def hypervolume(points: Array, reference: Array) -> float:
    r"""Measure the space between a reference point and the points that improve on it, where more is better.

    The union of the boxes from the reference to each point. A coordinate that is worse than the reference counts
    as equal to it, so that such a point adds nothing. Exact, by peeling off the volume that each point has for
    itself beside those after it; the effort grows fast with the number of points in more than a few dimensions.

    Parameters
    ----------
    points : array of shape (N, D)
    reference : array of shape (D,)

    Returns
    -------
    float

    References
    ----------
    While, Bradstreet and Barone, A Fast Way of Calculating Exact Hypervolumes, IEEE Transactions on Evolutionary
    Computation, 2012.

    Examples
    --------
    >>> import numpy as np
    >>> hypervolume(np.array([[1.0, 2.0], [2.0, 1.0]]), np.zeros(2))
    3.0
    """
    return _volume(non_dominated(np.maximum(points - reference, 0.0)))


def non_dominated(points: Array) -> Array:
    """Return the points that no other one equals or exceeds in every coordinate, each once.

    Parameters
    ----------
    points : array of shape (N, D)

    Returns
    -------
    array of shape (M, D)
        In ascending lexicographic order.

    Examples
    --------
    >>> import numpy as np
    >>> non_dominated(np.array([[1.0, 2.0], [2.0, 1.0], [1.0, 1.0], [2.0, 1.0]]))
    array([[1., 2.],
           [2., 1.]])
    """
    unique = np.unique(points, axis=0)
    exceeded = (unique[:, None] <= unique[None]).all(axis=2)
    return np.asarray(unique[exceeded.sum(axis=1) == 1])  # by itself alone


def _volume(sizes: Array) -> float:
    """Measure the union of boxes at the origin with these sides, none inside another."""
    total = 0.0
    for index, size in enumerate(sizes):
        shared = np.minimum(sizes[index + 1 :], size)
        total += float(size.prod())
        if len(shared):
            total -= _volume(non_dominated(shared))
    return total
