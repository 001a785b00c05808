"""The mean without the extremes, coordinate by coordinate."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mtobal.ops.columns import column_slices
from mtobal.ops.kernels import use_kernels


def trimmed_mean(block: Tensor, trim: int) -> Tensor:
    """Drop the `trim` largest and the `trim` smallest entries of each column, and average the rest.

    Rows are compared pair by pair, ``K trim`` times or so, which is several times faster than sorting columns.

    Parameters
    ----------
    block : Tensor of shape (K, n)
        One row a task.
    trim : int
        Less than ``K / 2``.

    Returns
    -------
    Tensor of shape (n,)

    Examples
    --------
    >>> import torch
    >>> trimmed_mean(torch.tensor([[1.0, -7.0], [2.0, 0.0], [900.0, 1.0]]), trim=1)
    tensor([2., 0.])
    """
    return trimmed_mean_of_blocks([block], trim)[0]


def trimmed_mean_of_blocks(blocks: Sequence[Tensor], trim: int) -> list[Tensor]:
    """Run `trimmed_mean` on several blocks."""
    if use_kernels(blocks):
        from mtobal.ops.kernels import trimmed_mean as kernel

        return kernel.trimmed_mean(blocks, trim)
    return [_trimmed_mean(block, trim) for block in blocks]


def _trimmed_mean(block: Tensor, trim: int) -> Tensor:
    means = torch.empty_like(block[0])
    for columns in column_slices(block):
        rows: Sequence[Tensor] = block[:, columns].unbind()
        for _ in range(trim):
            rows = _without_extreme(rows, torch.maximum, torch.minimum)
            rows = _without_extreme(rows, torch.minimum, torch.maximum)
        torch.mean(torch.stack(tuple(rows)), dim=0, out=means[columns])
    return means


Choice = Callable[[Tensor, Tensor], Tensor]


def _without_extreme(rows: Sequence[Tensor], extreme: Choice, other: Choice) -> list[Tensor]:
    """Return rows that hold, column by column, all entries but the extreme one."""
    carried, kept = rows[0], []
    for row in rows[1:]:
        kept.append(other(carried, row))
        carried = extreme(carried, row)
    return kept
