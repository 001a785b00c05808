"""Validation sets for data sets that come without one."""

from __future__ import annotations

import numpy as np

from mtobal.data.files import Array
from mtobal.data.seeding import derive_seed
from mtobal.errors import UsageError


def hold_out(classes: Array, share: float, seed: int, owner: str) -> tuple[Array, Array]:
    """Split samples at random into those to train on and those to validate on, every class in proportion.

    Parameters
    ----------
    classes : array of shape (N,)
        The class of each sample; all equal where classes do not matter.
    share : float
        How much to hold out of each class, from 0 to below 1.
    seed : int
        Of the draw.
    owner : str
        The data set, for the error.

    Returns
    -------
    tuple of array
        Indices to train on and indices held out, both in order.

    Examples
    --------
    >>> train, held = hold_out(np.array([0, 0, 0, 0, 1, 1, 1, 1]), 0.25, seed=0, owner="example")
    >>> len(train), len(held)
    (6, 2)
    """
    if not 0 <= share < 1:
        raise UsageError(f"{owner}: validation_share should be from 0 to below 1, not {share}.")
    if seed < 0:
        raise UsageError(f"{owner}: seed should be 0 or more, not {seed}.")
    rng = np.random.default_rng(derive_seed("validation", seed))
    held = np.zeros(len(classes), dtype=bool)
    for label in np.unique(classes):
        members = np.flatnonzero(classes == label)
        held[rng.permutation(members)[: round(share * len(members))]] = True
    return np.flatnonzero(~held), np.flatnonzero(held)
