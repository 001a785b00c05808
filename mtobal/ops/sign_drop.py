"""Keeping one sign a coordinate, drawn by its share."""

from __future__ import annotations

import torch
from torch import Tensor

from mtobal.ops.columns import column_slices


def sign_drop(
    block: Tensor, thresholds: Tensor, leak: Tensor | None = None, *, out: Tensor | None = None
) -> Tensor:
    r"""Sum the rows, coordinate by coordinate over the entries of one sign.

    With the sum s of a column and the sum a of its absolute values, the share of the positive entries is
    ``P = (1 + s / a) / 2``. They are kept where ``P > U`` and the negative ones elsewhere; with ``V = 2 U - 1``
    the kept sum is ``(s + a) / 2`` where ``s >= V a`` and ``(s - a) / 2`` elsewhere, so that s and a are all that
    has to be known, and a column of zeros is no special case.

    Parameters
    ----------
    block : Tensor of shape (K, n)
        One row a task.
    thresholds : Tensor of shape (n,)
        ``V = 2 U - 1`` for each coordinate, with U uniform on (0, 1).
    leak : Tensor of shape (K,), optional
        The fraction of each row that passes whatever its sign; zero by default.
    out : Tensor of shape (n,), optional
        Where to put the result.

    Returns
    -------
    Tensor of shape (n,)
        ``sum_k (l_k + (1 - l_k) M_k) g_k`` with the masks M and leaks l.

    Examples
    --------
    >>> import torch
    >>> sign_drop(torch.tensor([[3.0, 3.0], [-1.0, -1.0], [2.0, 2.0]]), torch.tensor([0.5, 0.9]))
    tensor([ 5., -1.])
    """
    total, size = _sums(block)
    side = torch.addcmul(total, thresholds, size, value=-1)
    if leak is None:
        return torch.lerp(total, size.copysign_(side), 0.5, out=out)
    masked, masked_size = _sums(block * (1 - leak)[:, None])
    kept = torch.lerp(masked, masked_size.copysign_(side), 0.5)
    return torch.add(kept, total - masked, out=out)


def random_sign_drop(block: Tensor, generator: torch.Generator, leak: Tensor | None = None) -> Tensor:
    """Run `sign_drop` with thresholds that are drawn anew.

    Each takes 16 random bits, a quarter of what the generator gives at a time: on a CPU the draws would otherwise
    cost as much as the sums. They stand for the centres of 2^16 cells of (-1, 1), half a cell short of both ends,
    so that no rounding of the sums drops a coordinate on which all rows agree; on the others, the chance of a
    sign is exact to 2^-17.

    Parameters
    ----------
    block : Tensor of shape (K, n)
    generator : torch.Generator
        On the device of the block.
    leak : Tensor of shape (K,), optional

    Returns
    -------
    Tensor of shape (n,)
    """
    kept = torch.empty_like(block[0])
    for columns in column_slices(block):
        count = columns.stop - columns.start
        words = torch.empty(count // 4 + 1, dtype=torch.int64, device=block.device)
        words.random_(-(2**63), None, generator=generator)  # every bit of every word
        thresholds = words.view(torch.int16)[:count].to(block.dtype).add_(0.5).mul_(2.0**-15)
        sign_drop(block[:, columns], thresholds, leak, out=kept[columns])
    return kept


def _sums(block: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sums of the columns and of their absolute values."""
    if block.device.type != "cpu":
        return block.sum(0), torch.linalg.vector_norm(block, ord=1, dim=0)
    # On a CPU that norm runs a hundred times slower than this.
    first, *others = block.unbind()
    total, size = first, first.abs()
    absolute = torch.empty_like(size)
    for row in others:
        total = first + row if total is first else total.add_(row)
        size += torch.abs(row, out=absolute)
    return total, size
