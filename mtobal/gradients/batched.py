"""Per-task gradients from one backward pass for all tasks at once."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import Node

from mtobal.errors import UsageError
from mtobal.gradients.decoders import Decoded, run_decoders
from mtobal.gradients.graph import differentiate
from mtobal.gradients.partition import Partition
from mtobal.gradients.task_gradients import TaskGradients
from mtobal.gradients.walk import Edge

# An operation reads one cotangent and gives one, and a residual connection holds two more.
ALIVE = 4


@dataclass(kw_only=True)
class Batched:
    """Send the cotangents of all tasks through the trunk together, by `torch.vmap`.

    Attributes
    ----------
    memory : float
        Bytes that the cotangents under way may take. Where those of all tasks need more, tasks go in turns.
    """

    memory: float = 1e9
    _known: set[str] = field(default_factory=set, init=False)  # operations through which vmap goes
    _stuck: bool = field(default=False, init=False)  # whether there has been one through which it does not

    def __post_init__(self) -> None:
        if self.memory <= 0:
            raise UsageError(f"gradients='batched': memory must be positive, not {self.memory:g}.")

    def __call__(
        self, losses: list[Tensor], active: Sequence[int], partition: Partition, cotangent: Tensor
    ) -> TaskGradients:
        decoded = run_decoders(losses, active, partition, cotangent)
        parameters = [decoded.parameters[place] for place in decoded.trunk]
        reach = [decoded.graph.reach(parameter) for parameter in parameters]
        tasks = [task for task, arrivals in enumerate(decoded.arrivals) if arrivals]
        operations = {type(node).__name__ for node in decoded.graph.tasks if decoded.graph.owner(node) is None}
        if tasks and not self._stuck and not operations <= self._known:
            self._stuck = not _try(decoded, tasks[0], parameters)
            self._known |= operations
        if self._stuck:
            decoded.descend(parameters, lambda task, found: decoded.add(task, decoded.trunk, found))
            return decoded.finish()
        size = max(1, int(self.memory // (ALIVE * _largest_output(decoded))))
        turns = [turn for group in _alike(decoded, tasks) for turn in _in_turns(group, size)]
        for turn in turns:
            found = _descend_together(decoded, turn, parameters, retain_graph=turn is not turns[-1])
            for number, task in enumerate(turn):
                gradients = [
                    None if gradient is None or task not in reaching else gradient[number]
                    for gradient, reaching in zip(found, reach, strict=True)
                ]
                decoded.add(task, decoded.trunk, gradients)
        return decoded.finish()


def _alike(decoded: Decoded, tasks: Sequence[int]) -> list[list[int]]:
    """Sort tasks by the places at which they enter the trunk: only those with the same can go together."""
    groups: dict[frozenset[Edge], list[int]] = {}
    for task in tasks:
        groups.setdefault(frozenset(decoded.arrivals[task]), []).append(task)
    return list(groups.values())


def _in_turns(tasks: list[int], size: int) -> list[list[int]]:
    return [tasks[start : start + size] for start in range(0, len(tasks), size)]


def _try(decoded: Decoded, task: int, parameters: list[Tensor]) -> bool:
    """Find out whether vmap knows what to do with every operation of the trunk."""
    try:
        _descend_together(decoded, [task], parameters, retain_graph=True)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        warnings.warn(
            f"gradients='batched': vmap does not go through this model ({reason}); one pass a task instead.",
            RuntimeWarning,
            stacklevel=2,
        )
        return False
    return True


def _descend_together(
    decoded: Decoded, tasks: Sequence[int], parameters: list[Tensor], *, retain_graph: bool
) -> list[Tensor | None]:
    """Return the gradients of some tasks, each with a leading dimension over these."""
    edges = list(decoded.arrivals[tasks[0]])
    cotangents = [torch.stack([decoded.arrivals[task][edge] for task in tasks]) for edge in edges]
    return differentiate(edges, cotangents, parameters, retain_graph=retain_graph, batched=True)


def _largest_output(decoded: Decoded) -> int:
    """Return the bytes of the largest output of an operation in the trunk."""
    graph = decoded.graph
    return max((_output_bytes(node) for node in graph.tasks if graph.owner(node) is None), default=1)


def _output_bytes(node: Node) -> int:
    operation: Any = node
    return sum(math.prod(output.shape) * output.dtype.itemsize for output in operation._input_metadata)
