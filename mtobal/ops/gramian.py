"""Gramian of per-task gradients that lie in separate tensors."""

from __future__ import annotations

from collections.abc import Sequence

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
    blocks: list[Tensor] = []
    for gradients in zip(*rows, strict=True):
        reached = [task for task, gradient in enumerate(gradients) if gradient is not None]
        if not reached:
            continue
        stacked = torch.stack([gradient.flatten() for gradient in gradients if gradient is not None])
        if stacked.dtype in (torch.float16, torch.bfloat16):
            stacked = stacked.float()
        block = stacked @ stacked.T
        if len(reached) < num_tasks:
            index = torch.tensor(reached, device=block.device)
            full = block.new_zeros(num_tasks, num_tasks)
            full[index[:, None], index] = block
            block = full
        blocks.append(block)
    if not blocks:
        return torch.zeros(num_tasks, num_tasks, dtype=torch.float64)
    if len({(block.device, block.dtype) for block in blocks}) > 1:
        blocks = [block.to("cpu", torch.float64) for block in blocks]
    return torch.stack(blocks).to("cpu").double().sum(0)
