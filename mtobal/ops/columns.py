"""Working through a block a few columns at a time."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

# What belongs to this many columns stays in the cache of a CPU core.
_COLUMNS = 2**16


def column_slices(block: Tensor) -> Iterator[slice]:
    """Cut the columns of a block of shape (K, n) where it lies on a CPU; elsewhere give them all at once.

    Examples
    --------
    >>> import torch
    >>> list(column_slices(torch.zeros(2, 70000)))
    [slice(0, 65536, None), slice(65536, 70000, None)]
    """
    columns = block.shape[1]
    width = _COLUMNS if block.device.type == "cpu" else max(columns, 1)
    for start in range(0, columns, width):
        yield slice(start, min(start + width, columns))
