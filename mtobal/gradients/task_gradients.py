"""What every engine gives: the task gradients of one step, in whatever form it keeps them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from mtobal.gradients.partition import Partition
from mtobal.gradients.rows import Rows, as_real
from mtobal.ops import Jacobian


class Piece(Protocol):
    """Gradients of K tasks with respect to some shared parameters."""

    @property
    def places(self) -> tuple[int, ...]:
        """The parameters, by their place among all."""

    def gramian(self) -> Tensor:
        """Return the inner products of the tasks' gradients, of shape (K, K), float64 on the CPU."""

    def combine(self, weights: Sequence[float]) -> list[Tensor | None]:
        """Return the weighted sum, one tensor a parameter; a task with weight zero contributes nothing at all."""

    def gradients(self, place: int) -> Sequence[Tensor | None]:
        """Return the K gradients with respect to one of the parameters; None is zero."""


@dataclass
class TaskGradients:
    """Gradients of the losses of K active tasks with respect to all parameters.

    Attributes
    ----------
    partition : Partition
        Which task reaches which parameter, this step included.
    pieces : list of Piece
        The shared parameters that an active task reaches, each in one piece.
    own : mapping from int to (int, Tensor)
        The task-own parameters, by their place: the active task that reaches it, and the gradient.
    num_tasks : int
        The number K of active tasks.
    scale : float
        A factor on all these gradients that is not the losses' own: loss scale, accumulation.
    """

    partition: Partition
    pieces: list[Piece]
    own: dict[int, tuple[int, Tensor]]
    num_tasks: int
    scale: float

    @classmethod
    def of_rows(
        cls,
        partition: Partition,
        rows: Sequence[Mapping[int, Tensor]],
        scale: float,
        pieces: Sequence[Piece] = (),
    ) -> TaskGradients:
        """Sort gradients by owner.

        Parameters
        ----------
        partition : Partition
        rows : sequence of K mappings from int to Tensor
            The gradients of each active task by the place of the parameter; what is missing is zero.
        scale : float
        pieces : sequence of Piece
            Shared parameters whose gradients are not among the rows.
        """
        kept = {place for piece in pieces for place in piece.places}
        shared: list[int] = []
        own: dict[int, tuple[int, Tensor]] = {}
        for place, is_shared in enumerate(partition.shared_mask):
            tasks = [task for task, row in enumerate(rows) if place in row]
            if is_shared and tasks and place not in kept:
                shared.append(place)
            elif not is_shared and tasks:
                [task] = tasks
                own[place] = (task, rows[task][place])
        written = Rows(tuple(shared), [[row.get(place) for place in shared] for row in rows])
        found = [*pieces, written] if shared else list(pieces)
        return cls(partition, found, own, len(rows), scale)

    def rows(self) -> list[dict[int, Tensor]]:
        """Return the gradients of each active task by the place of the parameter, task-own ones included."""
        rows: list[dict[int, Tensor]] = [{} for _ in range(self.num_tasks)]
        for place, piece in self._by_place():
            for row, gradient in zip(rows, piece.gradients(place), strict=True):
                if gradient is not None:
                    row[place] = gradient
        for place, (task, gradient) in self.own.items():
            rows[task][place] = gradient
        return rows

    def gramian(self) -> Tensor:
        """Return ``G = J J^T`` over the shared parameters, without the factor; float64 on the CPU."""
        total = torch.zeros(self.num_tasks, self.num_tasks, dtype=torch.float64)
        for piece in self.pieces:
            total += piece.gramian()
        return total / self.scale**2

    def jacobian(self) -> Jacobian:
        """Return J over the shared parameters that an active task reaches, without the factor."""
        names = list(self.partition.parameters)
        blocks = [as_real(piece.gradients(place)) for place, piece in self._by_place()]
        rows = [list(row) for row in zip(*blocks, strict=True)]
        return Jacobian.from_rows(rows, [names[place] for place, _ in self._by_place()], self.scale)

    def combine(self, weights: Sequence[float], heads: Sequence[float]) -> list[Tensor | None]:
        """Return the final gradient of every parameter; can be done once.

        Parameters
        ----------
        weights, heads : sequence of K floats
            On the gradients of shared and of task-own parameters.
        """
        gradients = self._final(heads)
        while self.pieces:  # what a piece keeps is let go before the next sum is made
            piece = self.pieces.pop()
            for place, gradient in zip(piece.places, piece.combine(weights), strict=True):
                gradients[place] = gradient
        return gradients

    def insert(self, direction: Sequence[Tensor], heads: Sequence[float]) -> list[Tensor | None]:
        """Return the final gradient of every parameter, given that of the shared ones.

        Parameters
        ----------
        direction : sequence of Tensor
            One tensor a block of the Jacobian, without the factor.
        heads : sequence of K floats
            On the gradients of task-own parameters.
        """
        gradients = self._final(heads)
        parameters = list(self.partition.parameters.values())
        for (place, _), block in zip(self._by_place(), direction, strict=True):
            parameter = parameters[place]
            if parameter.is_complex():
                pairs = (block * self.scale).to(parameter.real.dtype).reshape(*parameter.shape, 2)
                gradients[place] = torch.view_as_complex(pairs)
            else:
                gradients[place] = (block * self.scale).to(parameter.dtype).reshape(parameter.shape)
        return gradients

    def _by_place(self) -> list[tuple[int, Piece]]:
        return sorted(
            ((place, piece) for piece in self.pieces for place in piece.places), key=lambda pair: pair[0]
        )

    def _final(self, heads: Sequence[float]) -> list[Tensor | None]:
        gradients: list[Tensor | None] = [None] * len(self.partition.parameters)
        for place, (task, gradient) in self.own.items():
            if heads[task] == 0:  # whatever the gradient, which need not be finite
                gradients[place] = torch.zeros_like(gradient)
            else:
                gradients[place] = gradient if heads[task] == 1.0 else gradient * heads[task]
        return gradients


Engine = Callable[[list[Tensor], Sequence[int], Partition, Tensor], TaskGradients]
"""Differentiates the losses of a step; `run_decoders` says what it gets."""
