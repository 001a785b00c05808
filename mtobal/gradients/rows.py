"""Per-task gradients as tensors, as autograd gives them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mtobal.ops import gramian

# A block of all rows that is worked on at once stays in a processor's cache, and one that holds fewer entries
# than SMALL costs more in calls than in arithmetic.
BLOCK = 1 << 17
SMALL = 1 << 12

Row = Sequence[Tensor | None]


@dataclass
class Rows:
    """Gradients of K tasks with respect to some parameters.

    Attributes
    ----------
    places : tuple of int
        The parameters, by their place among all.
    rows : list of K lists of Tensor or None
        ``rows[k][i]`` is the gradient of task k with respect to parameter ``places[i]``; None is zero.
    """

    places: tuple[int, ...]
    rows: list[list[Tensor | None]]

    def gramian(self) -> Tensor:
        """Return the inner products of the rows, of shape (K, K), float64 on the CPU.

        Large rows are cut into blocks and small ones joined, so that no second copy of the rows ever exists.
        """
        blocks: list[list[Tensor | None]] = [[] for _ in self.rows]
        small: list[list[Tensor]] = [[] for _ in self.rows]
        width = max(SMALL, BLOCK // len(self.rows))
        for gradients in zip(*self.rows, strict=True):
            present = [gradient for gradient in gradients if gradient is not None]
            if not present:
                continue
            if len(present) == len(gradients) and present[0].numel() <= SMALL:
                for tensors, tensor in zip(small, present, strict=True):
                    tensors.append(tensor.flatten())
                continue
            count = -(-present[0].numel() // width)
            for row, gradient in zip(blocks, gradients, strict=True):
                row.extend([None] * count if gradient is None else _cut(gradient, width))
        for row, tensors in zip(blocks, small, strict=True):
            row.extend(_joined(tensors))
        return gramian(blocks)

    def combine(self, weights: Sequence[float]) -> list[Tensor | None]:
        """Return the weighted sum of the rows, one tensor a parameter, and let go of the rows on the way."""
        gradients = []
        for index in range(len(self.places)):
            gradients.append(combine([row[index] for row in self.rows], weights))
            for row in self.rows:
                row[index] = None
        return gradients

    def gradients(self, place: int) -> list[Tensor | None]:
        """Return the K gradients with respect to one of the parameters."""
        index = self.places.index(place)
        return [row[index] for row in self.rows]


def combine(gradients: Row, weights: Sequence[float]) -> Tensor | None:
    """Return the weighted sum of K tensors of one shape; None is zero, and so is whatever has weight zero.

    A weight of zero takes its tensor out of the sum, so that an infinite gradient does not turn it into NaN.
    """
    present = [(gradient, w) for gradient, w in zip(gradients, weights, strict=True) if gradient is not None]
    if not present:
        return None
    like = present[0][0]
    terms = [(_cut(gradient, BLOCK), weight) for gradient, weight in present if weight]
    total = torch.empty(like.numel(), dtype=like.dtype, device=like.device)
    for index, block in enumerate(_cut(total, BLOCK)):
        if not terms:
            block.zero_()
        for number, (blocks, weight) in enumerate(terms):
            if number == 0:
                torch.mul(blocks[index], weight, out=block)
            else:
                block.add_(blocks[index], alpha=weight)
    return total.view(like.shape)


def _cut(tensor: Tensor, width: int) -> Sequence[Tensor]:
    """Cut a tensor into flat blocks."""
    return torch.split(tensor.flatten(), width)


def _joined(row: list[Tensor]) -> list[Tensor]:
    """Join tensors of one type into one."""
    kinds = {(tensor.dtype, tensor.device) for tensor in row}
    return [
        torch.cat([tensor for tensor in row if (tensor.dtype, tensor.device) == kind])
        for kind in sorted(kinds, key=str)
    ]
