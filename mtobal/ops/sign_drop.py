"""Keeping one sign a coordinate, drawn by its share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mtobal.ops.columns import column_slices
from mtobal.ops.kernels import use_kernels

_ODD = 0x0001_0001_0001_0001  # the lowest bit of each quarter of a word


def sign_drop(block: Tensor, thresholds: Tensor, leak: Tensor | None = None) -> Tensor:
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
    if use_kernels([block]):
        from mtobal.ops.kernels import sign_drop as kernel

        return kernel.sign_drop(block, thresholds, leak)
    kept = torch.empty_like(block[0])
    _keep_one_sign(block, thresholds, 1.0, leak, kept, block.new_empty(2, block.shape[1]).unbind())
    return kept


def random_sign_drop(block: Tensor, generator: torch.Generator, leak: Tensor | None = None) -> Tensor:
    """Run `sign_drop` with thresholds that are drawn anew.

    Each takes 15 bits and a quarter of a word of the generator: on a CPU the draws would otherwise cost as much
    as the sums. They stand for the centres of 2^15 cells of (-1, 1), half a cell short of both ends,
    so that no rounding of the sums drops a coordinate on which all rows agree; on the others, the chance of a
    sign is exact to 2^-16.

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
    return random_sign_drop_of_blocks([block], generator, leak)[0]


def random_sign_drop_of_blocks(
    blocks: Sequence[Tensor], generator: torch.Generator, leak: Tensor | None = None
) -> list[Tensor]:
    """Run `random_sign_drop` on several blocks, all on the device of the generator."""
    if use_kernels(blocks):
        from mtobal.ops.kernels import sign_drop as kernel

        return kernel.random_sign_drop(blocks, generator, leak)
    return [_random_sign_drop(block, generator, leak) for block in blocks]


def _random_sign_drop(block: Tensor, generator: torch.Generator, leak: Tensor | None) -> Tensor:
    kept = torch.empty_like(block[0])
    parts = list(column_slices(block))
    width = parts[0].stop if parts else 0
    # New memory for each part would cost as much as the sums.
    words = torch.empty(width // 4 + 1, dtype=torch.int64, device=block.device)
    work = block.new_empty(2, width)
    for columns in parts:
        count = columns.stop - columns.start
        words.random_(-(2**63), None, generator=generator)  # every bit of every word
        odd = words.bitwise_or_(_ODD).view(torch.int16)
        _keep_one_sign(block[:, columns], odd[:count], 2.0**-15, leak, kept[columns], work[:, :count].unbind())
    return kept


def _keep_one_sign(
    block: Tensor, numbers: Tensor, unit: float, leak: Tensor | None, out: Tensor, work: Sequence[Tensor]
) -> None:
    """Run `sign_drop` with the thresholds ``unit * numbers``; `work` is memory for two rows."""
    size, side = work
    _sums(block, out, size, side)
    torch.addcmul(out, side.copy_(numbers), size, value=-unit, out=side)
    if leak is None:
        torch.lerp(out, size.copysign_(side), 0.5, out=out)
        return
    total = out.clone()
    _sums(block * (1 - leak)[:, None], out, size, torch.empty_like(size))
    total -= out
    torch.lerp(out, size.copysign_(side), 0.5, out=out)
    out += total


def _sums(block: Tensor, total: Tensor, size: Tensor, work: Tensor) -> None:
    """Write the sums of the columns and of their absolute values."""
    if block.device.type != "cpu":
        torch.sum(block, dim=0, out=total)
        torch.linalg.vector_norm(block, ord=1, dim=0, out=size)
        return
    # On a CPU that norm runs a hundred times slower than this.
    first, *others = block.unbind()
    torch.abs(first, out=size)
    for number, row in enumerate(others):
        torch.add(total if number else first, row, out=total)
        size += torch.abs(row, out=work)
    if not others:
        total.copy_(first)
