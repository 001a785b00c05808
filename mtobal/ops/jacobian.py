"""The Jacobian of the task losses, in one block a parameter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mtobal.ops.combine import combine_of_blocks
from mtobal.ops.gramian import gramian_of_blocks


@dataclass(frozen=True)
class Jacobian:
    """Per-task gradients side by side: row k of every block belongs to task k.

    Attributes
    ----------
    blocks : tuple of Tensor of shape (K, n)
        One a parameter, float32 or better; a task that does not reach the parameter has a row of zeros.
    names : tuple of str
        The names of the parameters.
    """

    blocks: tuple[Tensor, ...]
    names: tuple[str, ...]

    @classmethod
    def from_rows(
        cls, rows: Sequence[Sequence[Tensor | None]], names: Sequence[str], scale: float = 1.0
    ) -> Jacobian:
        """Stack gradients that lie apart, ``rows[k][p]``, divided by `scale`; None stands for zero."""
        blocks = []
        for gradients in zip(*rows, strict=True):
            like = next(gradient for gradient in gradients if gradient is not None)
            zero = torch.zeros_like(like).flatten()
            block = torch.stack([zero if gradient is None else gradient.flatten() for gradient in gradients])
            blocks.append(block.to(torch.promote_types(block.dtype, torch.float32)) / scale)
        return cls(tuple(blocks), tuple(names))

    def rows(self, tasks: Sequence[int]) -> Jacobian:
        """Return the rows of some tasks alone."""
        return Jacobian(tuple(block[list(tasks)] for block in self.blocks), self.names)

    def scaled(self, factors: Tensor) -> Jacobian:
        """Multiply each row with its factor, of shape (K,)."""
        return Jacobian(tuple(factors.to(block)[:, None] * block for block in self.blocks), self.names)

    def double(self) -> Jacobian:
        """Return the same rows in float64."""
        return Jacobian(tuple(block.double() for block in self.blocks), self.names)

    def gramian(self) -> Tensor:
        """Return ``J J^T``, of shape (K, K), float64 on the CPU."""
        return gramian_of_blocks(self.blocks)

    def combine(self, weights: Tensor) -> list[Tensor]:
        """Return ``J^T w``, one block of shape (n,) a parameter."""
        return combine_of_blocks(self.blocks, weights)
