"""Per-task gradients as tensors, as autograd gives them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mtobal import ops

# Of so many entries together, the rows are let go while the final gradient of the others is still to be made.
_HELD = 1 << 24

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
        """Return the inner products of the rows, of shape (K, K), float64 on the CPU."""
        return ops.gramian([as_real(row) for row in self.rows])

    def combine(self, weights: Sequence[float]) -> list[Tensor | None]:
        """Return the weighted sum of the rows, one tensor a parameter, and let go of the rows on the way."""
        gradients: list[Tensor | None] = []
        start, held = 0, 0
        for end in range(1, len(self.places) + 1):
            present = (gradient for gradient in (row[end - 1] for row in self.rows) if gradient is not None)
            held += next((gradient.numel() for gradient in present), 0)
            if held >= _HELD or end == len(self.places):
                gradients += ops.combine([row[start:end] for row in self.rows], weights)
                for row in self.rows:
                    row[start:end] = [None] * (end - start)
                start, held = end, 0
        return gradients

    def gradients(self, place: int) -> list[Tensor | None]:
        """Return the K gradients with respect to one of the parameters."""
        index = self.places.index(place)
        return [row[index] for row in self.rows]


def combine(gradients: Row, weights: Sequence[float]) -> Tensor | None:
    """Return the weighted sum of K tensors of one shape, as `mtobal.ops.combine` does."""
    return ops.combine([[gradient] for gradient in gradients], weights)[0]


def as_real(gradients: Row) -> list[Tensor | None]:
    """View complex gradients as real and imaginary parts, so that inner products are those of all real numbers."""
    return [
        torch.view_as_real(gradient.resolve_conj()) if gradient is not None and gradient.is_complex() else gradient
        for gradient in gradients
    ]
