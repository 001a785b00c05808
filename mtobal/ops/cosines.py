"""Cosines between per-task gradients."""

from __future__ import annotations

import torch
from torch import Tensor


def pairwise_cosines(gramian: Tensor) -> Tensor:
    """Return the cosine of each pair of rows from their Gramian.

    Parameters
    ----------
    gramian : Tensor of shape (K, K)

    Returns
    -------
    Tensor of shape (K, K)
        Between -1 and 1; NaN where one of the rows is zero, which has no direction.

    Examples
    --------
    >>> import torch
    >>> pairwise_cosines(torch.tensor([[4.0, -1.0], [-1.0, 1.0]]))
    tensor([[ 1.0000, -0.5000],
            [-0.5000,  1.0000]])
    """
    norms = gramian.diag().clamp(min=0).sqrt()
    units = torch.where(norms > 0, norms, torch.nan)
    return (gramian / units[:, None] / units).clamp(-1, 1)
