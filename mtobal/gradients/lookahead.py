"""Looking ahead of a step: losses and gradients of its batches, here and where a step would lead."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mtobal.errors import UsageError
from mtobal.gradients.graph import differentiate
from mtobal.gradients.perturbation import displaced
from mtobal.gradients.ranks import Ranks
from mtobal.gradients.replay import replayed, rng_state
from mtobal.gradients.rows import as_real
from mtobal.ops import Jacobian

Gradient = list[Tensor]
"""One tensor for each parameter that the optimizer moves, in its order; zero where a loss does not reach it."""

Run = Callable[[], tuple[tuple[str, ...], Mapping[str, Tensor]]]
"""Runs the model on a batch; returns the names of all tasks, and the losses of those that are present."""


class NotFiniteAhead(ArithmeticError):
    """A loss or a gradient ahead of the step is not finite.

    Attributes
    ----------
    tasks : list of str
        The tasks that are to blame, as far as it is known.
    """

    def __init__(self, tasks: Sequence[str]) -> None:
        super().__init__(f"not finite ahead of the step: {', '.join(tasks)}")
        self.tasks = list(tasks)


@dataclass(frozen=True)
class Seen:
    """The losses of one batch at one point.

    Attributes
    ----------
    tasks : tuple of str
        The names of all K tasks.
    active : tuple of int
        Indices of the A tasks that have a loss in the batch.
    losses : Tensor of shape (A,)
        Their losses, detached.
    graph : tuple of A scalar tensors
        The same with their graph.
    parameters : tuple of Tensor
        What they are differentiated by.
    """

    tasks: tuple[str, ...]
    active: tuple[int, ...]
    losses: Tensor
    graph: tuple[Tensor, ...]
    parameters: tuple[Tensor, ...]

    def gradient(self, weights: Tensor) -> Gradient:
        """Differentiate the sum of the losses under weights of shape (A,), in one backward pass; done once."""
        factors = [weight.to(loss).reshape(loss.shape) for weight, loss in zip(weights, self.graph, strict=True)]
        return self._differentiate(self.graph, factors, keep=False)

    def gradients(self) -> list[Gradient]:
        """Differentiate each loss, in one backward pass a task; done once."""
        last = len(self.graph) - 1
        return [
            self._differentiate((loss,), [torch.ones_like(loss)], keep=task < last)
            for task, loss in enumerate(self.graph)
        ]

    def _differentiate(self, losses: Sequence[Tensor], factors: list[Tensor], *, keep: bool) -> Gradient:
        with torch.autocast(losses[0].device.type, enabled=False):
            found = differentiate(losses, factors, self.parameters, retain_graph=keep)
        return [
            torch.zeros_like(parameter) if gradient is None else gradient
            for parameter, gradient in zip(self.parameters, found, strict=True)
        ]


class LookAhead:
    """What a strategy may try out before a step.

    Every run of a batch draws the random numbers that its first run draws, so that dropout has the same masks in
    all of them and in the step itself, and leaves generators, buffers and gradients as they were.

    Parameters
    ----------
    model : nn.Module or None
        Whose buffers are protected.
    optimizer : torch.optim.Optimizer
        Which parameters move, and how.
    training : callable
        Runs the model on the batch of the step.
    validation : callable, optional
        Runs it on another batch. By default the batch of the step serves for both.

    Attributes
    ----------
    parameters : tuple of Tensor
        The parameters that the optimizer moves.
    validates : bool
        Whether there is another batch.
    extra : list of Tensor or None
        What a strategy wants to be added to the gradients of the step, one tensor a parameter.
    broken : list of str
        The tasks for which something was not finite, so that the step is skipped.
    """

    def __init__(
        self,
        model: nn.Module | None,
        optimizer: torch.optim.Optimizer,
        training: Run,
        validation: Run | None = None,
    ) -> None:
        self.parameters: tuple[Tensor, ...] = tuple(
            parameter
            for group in optimizer.param_groups
            for parameter in group["params"]
            if parameter.requires_grad
        )
        self.validates = validation is not None
        self.extra: Gradient | None = None
        self.broken: list[str] = []
        self._model = model
        self._optimizer = optimizer
        self._training = training
        self._validation = training if validation is None else validation
        self._rng = rng_state()

    def training(self) -> Seen:
        """Run the model on the batch of the step, at the point where its parameters are now."""
        return self._see(self._training)

    def validation(self) -> Seen:
        """Run the model on the other batch, or on that of the step where there is no other."""
        return self._see(self._validation)

    def training_losses(self, active: Sequence[int]) -> Tensor:
        """Return the losses of some tasks on the batch of the step, of shape (A,), without a graph."""
        with torch.no_grad():
            seen = self._see(self._training)
        missing = [seen.tasks[task] for task in active if task not in seen.active]
        if missing:
            raise UsageError(f"the closure gave no loss of task {', '.join(missing)} when it was called again.")
        return seen.losses[[seen.active.index(task) for task in active]]

    def virtual_step(self, gradient: Gradient, *, whole: bool = False) -> Gradient:
        """Return the way that a step of plain gradient descent would go, with the optimizer's learning rates.

        Parameters
        ----------
        gradient : list of Tensor
        whole : bool
            Whether the optimizer's weight decay and, if it has one, its momentum take part:
            ``-lr (momentum * buffer + gradient + weight_decay * parameter)``.
        """
        way: Gradient = []
        gradients = iter(gradient)
        with torch.no_grad():
            for group in self._optimizer.param_groups:
                for parameter in group["params"]:
                    if not parameter.requires_grad:
                        continue
                    slope = next(gradients)
                    if whole:
                        slope = slope + group.get("weight_decay", 0.0) * parameter
                        buffer = self._optimizer.state.get(parameter, {}).get("momentum_buffer")
                        if buffer is not None:
                            slope = slope + group["momentum"] * buffer
                    way.append(-float(group["lr"]) * slope)
        return way

    @contextmanager
    def displaced(self, way: Gradient, scale: float = 1.0) -> Iterator[None]:
        """Run a block with the parameters moved; they are put back bit by bit, also after an exception."""
        with displaced(self.parameters, enumerate(part if scale == 1.0 else scale * part for part in way)):
            yield

    def mean(self, values: Tensor, *seen: Seen) -> Tensor:
        """Average over the ranks something that was made of these batches.

        Raises
        ------
        NotFiniteAhead
            It is not finite, on all ranks or on one.
        UsageError
            Ranks have batches of different tasks.
        """
        ranks = Ranks.now()
        if ranks.size > 1:
            for batch in seen:
                present = torch.zeros(len(batch.tasks), dtype=torch.float64)
                present[list(batch.active)] = 1.0
                if (ranks.sum(present) != ranks.size * present).any():
                    raise UsageError("to look ahead, the batches of all ranks must have losses of the same tasks.")
            values = ranks.sum(values) / ranks.size
        if not values.isfinite().all():
            tasks = {
                batch.tasks[task]
                for batch in seen
                for task, loss in zip(batch.active, batch.losses.tolist(), strict=True)
                if not torch.tensor(loss).isfinite()
            }
            raise NotFiniteAhead(sorted(tasks) or seen[0].tasks)
        return values

    def _see(self, run: Run) -> Seen:
        with self._buffers_kept(), replayed(None, self._rng):
            tasks, present = run()
        values = tuple(present.values())
        dtype = torch.float32
        for value in values:
            dtype = torch.promote_types(dtype, value.dtype)
        losses = torch.stack([value.detach().reshape(()).to(values[0].device, dtype) for value in values])
        return Seen(tasks, tuple(tasks.index(task) for task in present), losses, values, self.parameters)

    @contextmanager
    def _buffers_kept(self) -> Iterator[None]:
        """Put the buffers back after a run whose graph, which may hold them, is still to be differentiated."""
        buffers = () if self._model is None else self._model.buffers()
        kept = [(buffer.data, buffer.clone()) for buffer in buffers]
        try:
            yield
        finally:
            for values, before in kept:
                values.copy_(before)


def inner_products(rows: Sequence[Gradient]) -> Tensor:
    """Return the inner products of gradients, of shape (R, R), float64 on the CPU."""
    with torch.autocast(rows[0][0].device.type, enabled=False):
        return Jacobian.from_rows([as_real(row) for row in rows], list(map(str, range(len(rows[0]))))).gramian()


def weighted_sum(rows: Sequence[Gradient], weights: Tensor) -> Gradient:
    """Return the sum of gradients under weights of shape (R,)."""
    factors = weights.tolist()
    total = [factors[0] * part for part in rows[0]]
    for factor, row in zip(factors[1:], rows[1:], strict=True):
        for part, other in zip(total, row, strict=True):
            part.add_(other, alpha=factor)
    return total
