"""The losses of one batch at points near the one where the parameters stand."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn

from mtobal.gradients.decoders import run_decoders
from mtobal.gradients.loop import loop
from mtobal.gradients.partition import Partition
from mtobal.gradients.ranks import Ranks
from mtobal.gradients.replay import RNGState, replayed, rng_state
from mtobal.gradients.scheme import Scheme
from mtobal.gradients.task_gradients import TaskGradients

Row = dict[int, Tensor]
"""Something of the shape of the parameters, such as a gradient, by their place; what is missing is zero."""

Point = tuple[Sequence[int], Row]
"""Tasks, by their number among the active ones, and how far from home the parameters are for them.

The offsets are taken out of the row as they are used, so that they need no memory while the model runs.
"""


@contextmanager
def displaced(parameters: Sequence[Tensor], offsets: Iterable[tuple[int, Tensor]]) -> Iterator[None]:
    """Run a block at another point, and put the parameters back bit by bit, also after an exception.

    Autograd does not notice: a graph that was built before may still be differentiated afterwards. What is built
    inside must be differentiated inside.

    Parameters
    ----------
    parameters : sequence of Tensor
    offsets : iterable of (int, Tensor)
        What is added to the parameters, by their place. Each is used up before the next is asked for.
    """
    home: list[tuple[Tensor, Tensor]] = []
    try:
        for place, offset in offsets:
            values = parameters[place].data
            home.append((values, values.clone()))
            values.add_(offset)
            del offset
        torch.clear_autocast_cache()  # it would answer with the parameters that it has cast before
        yield
    finally:
        for values, kept in home:
            values.copy_(kept)
        torch.clear_autocast_cache()


@contextmanager
def evaluating(model: nn.Module | None) -> Iterator[None]:
    """Run a block with all modules in evaluation mode, and put each back into the mode that it had."""
    modes = [] if model is None else [(module, module.training) for module in model.modules()]
    try:
        for module, _ in modes:
            module.training = False
        yield
    finally:
        for module, training in modes:
            module.training = training


class Landscape:
    """The losses of one batch as functions of the parameters.

    Whatever it is asked for, parameters, buffers, modes and random generators are afterwards what they were. On
    several ranks, every rank asks the same in the same order, and gets means over the ranks unless it says local.

    Parameters
    ----------
    losses : list of scalar tensors with graph
        Of the tasks that this rank has losses of; emptied when it is differentiated.
    local, active : sequence of int
        The indices of these tasks, and of those that any rank has losses of.
    partition : Partition
        Of all parameters.
    cotangent : scalar tensor
        Factor on the gradients at other points: loss scale, accumulation.
    scheme : Scheme
        How per-task gradients are taken.
    again : callable
        Runs the model on the batch once more, and returns the losses of the tasks of `local`.
    model : nn.Module or None
        Whose buffers and modes are protected.
    rng : RNGState or None
        The random generators before the first run, so that each run draws the same. None takes those of now.
    ranks : Ranks
    keeps_clean : bool
        Whether the gradients at home are kept.

    Attributes
    ----------
    parameters : list of Tensor
        All of them, by their place.
    clean : TaskGradients or None
        The gradients of this rank at home, with loss scale, if they have been asked for and are to be kept.
    """

    def __init__(
        self,
        losses: list[Tensor],
        local: Sequence[int],
        active: Sequence[int],
        partition: Partition,
        cotangent: Tensor,
        *,
        scheme: Scheme,
        again: Callable[[], Sequence[Tensor]],
        model: nn.Module | None,
        rng: RNGState | None,
        ranks: Ranks,
        keeps_clean: bool = False,
    ) -> None:
        self.parameters = list(partition.parameters.values())
        self.scale = float(cotangent) or 1.0
        self._losses = losses
        self._local = local
        self._active = active
        self._partition = partition
        self._cotangent = cotangent
        self._scheme = scheme
        self._again = again
        self._model = model
        self._rng = rng_state() if rng is None else rng
        self._ranks = ranks
        self._keeps_clean = keeps_clean
        self.clean: TaskGradients | None = None

    @property
    def shared(self) -> list[int]:
        """The shared parameters that an active task reaches, by their place."""
        active = frozenset(self._active)
        marks = zip(self._partition.shared_mask, self._partition.reach, strict=True)
        return [place for place, (shared, reach) in enumerate(marks) if shared and not reach.isdisjoint(active)]

    def own(self, task: int) -> list[int]:
        """Return the parameters that one active task alone reaches, by their place."""
        index = self._active[task]
        marks = zip(self._partition.shared_mask, self._partition.reach, strict=True)
        return [place for place, (shared, reach) in enumerate(marks) if not shared and index in reach]

    # ------------------------------------------------------------------ at home, once

    def gradient(self, weights: Tensor) -> Row:
        """Return the gradient of a weighted sum of the losses, from one backward pass.

        Parameters
        ----------
        weights : Tensor of shape (A,)
        """
        factors = dict(zip(self._active, weights.tolist(), strict=True))
        mine = [factors[task] for task in self._local]
        decoded = run_decoders(self._losses, self._local, self._partition, self._cotangent)
        found = decoded.combine(mine, mine)
        row = {place: gradient for place, gradient in enumerate(found) if gradient is not None}
        return self.mean(row, self._active)

    def gradients(self) -> Iterator[Row]:
        """Go through the gradients of the losses of the active tasks."""
        taken = self._scheme.take(self._losses, self._local, self._partition, self._cotangent)
        rows = dict(zip(self._local, taken.rows(), strict=True))
        if self._keeps_clean:
            self.clean = TaskGradients.of_rows(taken.partition, list(rows.values()), self.scale)
        del taken
        for task in self._active:
            yield self.mean(rows.pop(task, {}), (task,))

    def mean(self, row: Row, tasks: Sequence[int]) -> Row:
        """Bring a gradient of these tasks to one without loss scale, averaged over the ranks, in place."""
        if self._ranks.size > 1:
            for place, (parameter, reach) in enumerate(zip(self.parameters, self._partition.reach, strict=True)):
                if not reach.isdisjoint(tasks):
                    local = row.get(place)
                    local = torch.zeros_like(parameter) if local is None else local
                    row[place] = self._ranks.sum(local) / (self._ranks.size * self.scale)
        elif self.scale != 1.0:
            for place in row:
                row[place] = row[place] / self.scale
        return row

    # ------------------------------------------------------------------ elsewhere

    def losses(self, offsets: Iterable[tuple[int, Tensor]], *, training: bool) -> Tensor:
        """Return the losses at another point, from a forward pass alone.

        Parameters
        ----------
        offsets : iterable of (int, Tensor)
            From home, by the place of the parameter.
        training : bool
            Whether the modules keep the mode that they are in, or are in evaluation mode.

        Returns
        -------
        Tensor of shape (A,)
            float64 on the CPU.
        """
        mode = nullcontext() if training else evaluating(self._model)
        with torch.no_grad(), self._at(offsets), mode:
            found = [float(loss) for loss in self._again()]
        table = torch.zeros(2, len(self._active), dtype=torch.float64)  # how many ranks, sum
        places = [self._active.index(task) for task in self._local]
        table[0, places] = 1.0
        table[1, places] = torch.tensor(found, dtype=torch.float64)
        if self._ranks.size > 1:
            table = self._ranks.sum(table)
        return table[1] / table[0]

    def local_gradients(self, points: Iterable[Point]) -> TaskGradients:
        """Return the gradient of each task at its own point, those of this rank, with loss scale."""
        rows: dict[int, Row] = {}
        partition = self._partition
        for tasks, offsets in points:
            with torch.enable_grad(), self._at(_taken_out(offsets)):
                found = self._again_for(tasks)
                take = self._scheme.take if len(tasks) == len(self._active) else loop
                with torch.no_grad():
                    taken = take(list(found.values()), list(found), partition, self._cotangent)
            if len(tasks) == len(self._active):
                return taken
            partition = taken.partition
            rows.update(zip(found, taken.rows(), strict=True))
            del offsets, found, taken  # before the next point is built
        return TaskGradients.of_rows(partition, [rows.pop(task, {}) for task in self._local], self.scale)

    def local_sum(self, points: Iterable[Point], weights: Tensor) -> tuple[list[Tensor | None], list[int]]:
        """Return the weighted sum of the gradients, each at its own point, of this rank, with loss scale.

        No more than two gradients exist at a time.

        Parameters
        ----------
        points : iterable of Point
        weights : Tensor of shape (A,)

        Returns
        -------
        gradients : list of Tensor or None
            By the place of the parameter.
        broken : list of int
            The tasks whose loss at its point is not finite on some rank; there, it is left out.
        """
        factors = dict(zip(self._active, weights.tolist(), strict=True))
        total: list[Tensor | None] = [None] * len(self.parameters)
        broken = torch.zeros(len(self._active))
        for tasks, offsets in points:
            with torch.enable_grad(), self._at(_taken_out(offsets)):
                found = self._again_for(tasks)
                for task in [task for task, loss in found.items() if not loss.isfinite()]:
                    broken[self._active.index(task)] = 1.0
                    del found[task]
                mine = [factors[task] for task in found]
                with torch.no_grad():
                    decoded = run_decoders(list(found.values()), list(found), self._partition, self._cotangent)
                    gradients = decoded.combine(mine, mine)
            for place, gradient in enumerate(gradients):
                known = total[place]
                if gradient is not None:
                    total[place] = gradient if known is None else known + gradient
                    gradients[place] = None
            del offsets, found, decoded, gradients  # before the next point is built
        if self._ranks.size > 1:
            broken = self._ranks.sum(broken)
        return total, [self._active[task] for task in broken.nonzero().flatten().tolist()]

    @contextmanager
    def _at(self, offsets: Iterable[tuple[int, Tensor]]) -> Iterator[None]:
        with displaced(self.parameters, offsets), replayed(self._model, self._rng):
            yield

    def _again_for(self, tasks: Sequence[int]) -> dict[int, Tensor]:
        """Run the model once more for some of the active tasks, as far as this rank has them."""
        wanted = {self._active[task] for task in tasks}
        return {task: loss for task, loss in zip(self._local, self._again(), strict=True) if task in wanted}


def _taken_out(row: Row) -> Iterator[tuple[int, Tensor]]:
    for place in list(row):
        yield place, row.pop(place)


def split(clean: TaskGradients, moved: TaskGradients) -> tuple[TaskGradients, TaskGradients]:
    """Return gradients at two points as those of the first, and by how much the second ones differ.

    Task-own gradients are those of the second point, and belong to the first of the two.
    """
    shared, partition = moved.partition.shared_mask, moved.partition
    known, differences = clean.rows(), moved.rows()
    for row, difference in zip(known, differences, strict=True):
        for place in {*row, *difference}:
            if not shared[place]:
                row.pop(place, None)
                if place in difference:
                    row[place] = difference.pop(place)
            elif place not in difference:
                difference[place] = -row[place]
            elif place in row:
                difference[place] = difference[place] - row[place]
    return (
        TaskGradients.of_rows(partition, known, moved.scale),
        TaskGradients.of_rows(partition, differences, moved.scale),
    )


def stacked(first: TaskGradients, second: TaskGradients) -> TaskGradients:
    """Return two sets of gradients one below the other; task-own gradients are those of the first."""
    shared = second.partition.shared_mask
    below = [{place: gradient for place, gradient in row.items() if shared[place]} for row in second.rows()]
    return TaskGradients.of_rows(second.partition, [*first.rows(), *below], first.scale)
