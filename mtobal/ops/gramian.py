"""Gramian of per-task gradients that lie in separate tensors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


def gramian(rows: Sequence[Sequence[Tensor | None]]) -> Tensor:
    """Compute ``G = J J^T`` without building J.

    ``G_ij = sum_p <rows[i][p], rows[j][p]>`` over the parameters p. Products are accumulated in at least
    float32 inside one parameter and in float64 across parameters.

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
    num_tasks = len(rows)
    products: list[Tensor] = []
    for gradients in zip(*rows, strict=True):
        reached = [task for task, gradient in enumerate(gradients) if gradient is not None]
        if not reached:
            continue
        stacked = torch.stack([gradient.flatten() for gradient in gradients if gradient is not None])
        product = _outer(stacked)
        if len(reached) < num_tasks:
            index = torch.tensor(reached, device=product.device)
            full = product.new_zeros(num_tasks, num_tasks)
            full[index[:, None], index] = product
            product = full
        products.append(product)
    return _total(products, num_tasks)


def gramian_of_blocks(blocks: Iterable[Tensor]) -> Tensor:
    """Compute ``G = J J^T`` from blocks of shape (K, n), as `gramian` does from rows."""
    products = [_outer(block) for block in blocks]
    return _total(products, len(products[0]))


def _outer(block: Tensor) -> Tensor:
    if block.dtype in (torch.float16, torch.bfloat16):
        block = block.float()
    return block @ block.T


def _total(products: list[Tensor], num_tasks: int) -> Tensor:
    """Add up in float64 on the CPU, with one transfer where all products lie together."""
    if not products:
        return torch.zeros(num_tasks, num_tasks, dtype=torch.float64)
    if len({(product.device, product.dtype) for product in products}) > 1:
        products = [product.to("cpu", torch.float64) for product in products]
    return torch.stack(products).to("cpu").double().sum(0)
