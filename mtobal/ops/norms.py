"""Norms of per-task gradients."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from mtobal.ops.gramian import gramian_of_blocks
from mtobal.ops.kernels import use_kernels


def row_norms(blocks: Iterable[Tensor]) -> Tensor:
    """Return the norm of each row over all blocks.

    Parameters
    ----------
    blocks : iterable of Tensor of shape (K, n)
        At least one.

    Returns
    -------
    Tensor of shape (K,)
        float64 on the CPU: one transfer, whatever the device of the blocks.

    Examples
    --------
    >>> import torch
    >>> row_norms([torch.tensor([[3.0], [0.0]]), torch.tensor([[0.0, 4.0], [1.0, 0.0]])])
    tensor([5., 1.], dtype=torch.float64)
    """
    blocks = list(blocks)
    if use_kernels(blocks):  # reading the rows is what takes time, and the Gramian reads them once
        return gramian_of_blocks(blocks).diagonal().sqrt()
    norms = [torch.linalg.vector_norm(block, dim=1) for block in blocks]
    together = torch.stack([norm.to(norms[0].device, torch.float64) for norm in norms]).cpu()
    return together.square().sum(0).sqrt()
