"""Gramian of per-task gradients that lie in separate tensors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from mtobal.ops.kernels import use_kernels
from mtobal.ops.layout import alike, flat

Column = Sequence[Tensor | None]

# So many entries of all rows together stay in the cache of a CPU core.
_BLOCK = 1 << 18
# A parameter of fewer entries costs more in calls than in arithmetic.
_SMALL = 1 << 12
# So many rows at a time a CPU multiplies faster, by the product, than up to three times as many.
_TOGETHER = 12


def gramian(rows: Sequence[Sequence[Tensor | None]]) -> Tensor:
    """Compute ``G = J J^T`` without building J.

    ``G_ij = sum_p <rows[i][p], rows[j][p]>`` over the parameters p. Products are accumulated in at least
    float32 within a block of entries and in float64 from block to block. Large parameters are worked on in blocks
    and small ones joined, so that no second copy of the rows ever exists.

    Parameters
    ----------
    rows : sequence of K sequences of P tensors
        ``rows[k][p]`` is the gradient of task k with respect to parameter p, or None where task k does not
        reach p, which counts as zero.

    Returns
    -------
    Tensor of shape (K, K)
        float64 on the CPU: one transfer, whatever the device of the rows.

    Examples
    --------
    >>> import torch
    >>> gramian([[torch.tensor([1.0, 2.0]), None], [torch.tensor([0.0, 1.0]), torch.tensor([3.0])]])
    tensor([[ 5.,  2.],
            [ 2., 10.]], dtype=torch.float64)
    """
    columns = [gradients for gradients in zip(*rows, strict=True) if any(g is not None for g in gradients)]
    if use_kernels(gradient for gradients in columns for gradient in gradients if gradient is not None):
        from mtobal.ops.kernels import gramian as kernel

        return _total(kernel.gramian(columns, len(rows)), len(rows))
    return _total([product for gradients in _joined(columns) for product in _products(gradients)], len(rows))


def gramian_of_blocks(blocks: Sequence[Tensor]) -> Tensor:
    """Compute ``G = J J^T`` from blocks of shape (K, n), at least one, as `gramian` does from rows."""
    num_tasks = len(blocks[0])
    if use_kernels(blocks):
        from mtobal.ops.kernels import gramian as kernel

        return _total(kernel.gramian([block.unbind() for block in blocks], num_tasks), num_tasks)
    if num_tasks > _TOGETHER:
        return _total([_outer(block) for block in blocks], num_tasks)
    parts = (part for block in blocks for part in torch.split(block, _width(block.device, num_tasks), dim=1))
    return _total([_outer(part) for part in parts], num_tasks)


def _joined(columns: Iterable[Column]) -> Iterator[Column]:
    """Return large parameters as they are, and small ones of a kind as one."""
    small: dict[tuple[torch.device, torch.dtype], list[list[Tensor]]] = {}
    for gradients in columns:
        like = next(gradient for gradient in gradients if gradient is not None)
        if like.numel() > _SMALL:
            yield gradients
            continue
        zero = torch.zeros_like(like)
        row = [
            flat(gradient)
            for gradient in alike([zero if g is None else g for g in gradients])
            if gradient is not None
        ]
        small.setdefault((like.device, like.dtype), []).append(row)
    for rows in small.values():
        yield [torch.cat(tensors) for tensors in zip(*rows, strict=True)]


def _products(gradients: Column) -> Iterator[Tensor]:
    """Return the Gramians of one parameter, one for each block of its entries."""
    reached = [task for task, gradient in enumerate(gradients) if gradient is not None]
    rows = [flat(gradient) for gradient in alike(gradients) if gradient is not None]
    width = _width(rows[0].device, len(rows))
    index = torch.tensor(reached, device=rows[0].device)
    for parts in zip(*(torch.split(row, width) for row in rows), strict=True):
        product = _outer_in_turns(torch.stack(parts))
        if len(reached) < len(gradients):
            full = product.new_zeros(len(gradients), len(gradients))
            full[index[:, None], index] = product
            product = full
        yield product


def _width(device: torch.device, num_tasks: int) -> int:
    """Return how many entries of each row to work on at once."""
    return max(_SMALL, _BLOCK // num_tasks) if device.type == "cpu" else 1 << 62


def _outer(block: Tensor) -> Tensor:
    block = block.to(torch.promote_types(block.dtype, torch.float32))
    return block @ block.T


def _outer_in_turns(block: Tensor) -> Tensor:
    """Do the same, on a CPU with few rows at a time and each pair of these once."""
    if block.device.type != "cpu" or not _TOGETHER < len(block) <= 3 * _TOGETHER:
        return _outer(block)
    block = block.to(torch.promote_types(block.dtype, torch.float32))
    product = block.new_zeros(len(block), len(block))
    for start in range(0, len(block), _TOGETHER):
        product[start : start + _TOGETHER, start:] = block[start : start + _TOGETHER] @ block[start:].T
    return product.triu() + product.triu(1).T


def _total(products: list[Tensor], num_tasks: int) -> Tensor:
    """Add up in float64, with one transfer from each device."""
    kinds: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for product in products:
        kinds.setdefault((product.device, product.dtype), []).append(product)
    sums: dict[torch.device, Tensor] = {}
    for (device, _), group in kinds.items():
        added = torch.stack(group).sum(0, dtype=torch.float64)
        sums[device] = sums[device] + added if device in sums else added
    total = torch.zeros(num_tasks, num_tasks, dtype=torch.float64)
    for added in sums.values():
        total += added.cpu()
    return total
