"""Weighted sum of per-task gradients that lie in separate tensors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from mtobal.ops.columns import column_slices
from mtobal.ops.kernels import use_kernels
from mtobal.ops.layout import alike, flat


def combine(rows: Sequence[Sequence[Tensor | None]], weights: Sequence[float]) -> list[Tensor | None]:
    """Compute ``J^T w`` parameter by parameter.

    Sums are accumulated in at least float32.

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
        In the type of the rows; None where no task reaches the parameter. No row is modified.

    Examples
    --------
    >>> import torch
    >>> combine([[torch.tensor([1.0, 2.0])], [torch.tensor([10.0, 20.0])]], [2.0, 0.5])
    [tensor([ 7., 14.])]
    """
    columns = list(zip(*rows, strict=True))
    reached = [gradients for gradients in columns if any(gradient is not None for gradient in gradients)]
    if use_kernels(gradient for gradients in reached for gradient in gradients if gradient is not None):
        from mtobal.ops.kernels import combine as kernel

        sums: Iterator[Tensor] = iter(kernel.combine(reached, weights))
    else:
        sums = (_weighted_sum(gradients, weights) for gradients in reached)
    return [None if all(gradient is None for gradient in gradients) else next(sums) for gradients in columns]


def combine_of_blocks(blocks: Sequence[Tensor], weights: Tensor) -> list[Tensor]:
    """Compute ``J^T w`` from blocks of shape (K, n) and weights of shape (K,)."""
    if use_kernels(blocks):
        from mtobal.ops.kernels import combine as kernel

        return kernel.combine([block.unbind() for block in blocks], weights.tolist())
    return [weights.to(block) @ block for block in blocks]


def _weighted_sum(gradients: Sequence[Tensor | None], weights: Sequence[float]) -> Tensor:
    """Return the weighted sum of the gradients of one parameter, at least one of them not None."""
    rows = [
        (gradient, weight)
        for gradient, weight in zip(alike(gradients), weights, strict=True)
        if gradient is not None
    ]
    total = torch.empty_like(rows[0][0])
    terms = [(flat(row), weight) for row, weight in rows if weight]
    entries = flat(total)
    summed_in = torch.promote_types(total.dtype, torch.float32)
    for columns in column_slices(entries[None]):
        if not terms:
            entries[columns] = 0.0
        elif summed_in != total.dtype:
            sums = torch.zeros_like(entries[columns], dtype=summed_in)
            for row, weight in terms:
                sums.add_(row[columns], alpha=weight)
            entries[columns] = sums
        else:
            (first, weight), *others = terms
            sums = torch.mul(first[columns], weight, out=entries[columns])
            for row, weight in others:
                sums.add_(row[columns], alpha=weight)
    return total
