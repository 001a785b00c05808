"""Projection on the probability simplex."""

from __future__ import annotations

import numpy as np

from mtobal.solvers.nonnegative import Array


def simplex_projection(point: Array) -> Array:
    r"""Find the point of the simplex ``{w >= 0, sum w = 1}`` that is nearest to a given one.

    ``w = max(v - theta, 0)``. In descending order of v, the largest entries that stay positive are those for
    which the mean excess ``theta_j = (v_1 + ... + v_j - 1) / j`` is below the entry itself.

    Parameters
    ----------
    point : array of shape (K,)

    Returns
    -------
    array of shape (K,)

    References
    ----------
    J. Duchi, S. Shalev-Shwartz, Y. Singer and T. Chandra, Efficient Projections onto the l1-Ball for Learning in
    High Dimensions, ICML 2008.

    Examples
    --------
    >>> import numpy as np
    >>> simplex_projection(np.array([0.5, 1.0, -3.0]))
    array([0.25, 0.75, 0.  ])
    """
    # A shift of all entries changes nothing, and this one keeps large entries from swallowing the 1.
    shifted = point - point.max()
    descending = np.sort(shifted)[::-1]
    thresholds = (descending.cumsum() - 1.0) / np.arange(1, len(point) + 1)
    last = np.count_nonzero(descending > thresholds) - 1
    return np.asarray(np.maximum(shifted - thresholds[last], 0.0))
