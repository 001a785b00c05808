"""Weighted sum of per-task gradients that lie in separate tensors."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def combine(rows: Sequence[Sequence[Tensor | None]], weights: Sequence[float]) -> list[Tensor | None]:
    """Compute ``J^T w`` parameter by parameter.

    Parameters
    ----------
    rows : sequence of K sequences of P tensors
        ``rows[k][p]`` is the gradient of task k with respect to parameter p, or None where there is none.
    weights : sequence of K floats
        A task with weight zero contributes nothing at all, so that an infinite gradient that was given no
        weight does not turn the sum into NaN.

    Returns
    -------
    list of P tensors
        None where no task reaches the parameter. No row is modified.

    Examples
    --------
    >>> import torch
    >>> combine([[torch.tensor([1.0, 2.0])], [torch.tensor([10.0, 20.0])]], [2.0, 0.5])
    [tensor([ 7., 14.])]
    """
    combined: list[Tensor | None] = []
    for gradients in zip(*rows, strict=True):
        total: Tensor | None = None
        for gradient, weight in zip(gradients, weights, strict=True):
            if gradient is None:
                continue
            if total is None:
                total = gradient * weight if weight else gradient.new_zeros(gradient.shape)
            elif weight:
                total.add_(gradient, alpha=weight)
        combined.append(total)
    return combined
