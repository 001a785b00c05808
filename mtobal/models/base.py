"""What every model of the zoo tells: its representations, and whose each parameter is."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor, nn

Inputs = Tensor | tuple[Tensor, ...] | dict[str, Tensor]
"""What a model reads: a tensor, several that belong together (a graph), or one tensor a task."""

Representation = Tensor | dict[str, Tensor]
"""What the decoders read: one tensor for all tasks, or one a task."""


class MultiTaskModel(nn.Module):
    """A network of several tasks: inputs to representation, representation to the output of every task.

    A subclass writes `encode` and `decode`, names the modules that belong to one task alone, and the last module
    that is shared.
    """

    @abstractmethod
    def encode(self, inputs: Inputs) -> Representation:
        """Return what the decoders read."""

    @abstractmethod
    def decode(self, representation: Any, inputs: Inputs) -> dict[str, Tensor]:
        """Return the output of every task from what `encode` returned, and from what is no feature of the inputs.

        That is their size, or a picture to which a correction is added.
        """

    @abstractmethod
    def task_modules(self, task: str) -> Sequence[nn.Module]:
        """Return the modules that the loss of this task alone reaches."""

    @abstractmethod
    def last_shared(self) -> nn.Module:
        """Return the last module that several losses reach: what strategies that look at one layer look at."""

    @property
    @abstractmethod
    def tasks(self) -> tuple[str, ...]:
        """The names of the tasks."""

    def forward(self, inputs: Inputs) -> dict[str, Tensor]:
        """Return the output of every task."""
        return self.decode(self.encode(inputs), inputs)

    def penalty(self, inputs: Inputs) -> dict[str, Tensor]:
        """Return what training adds to the losses of some tasks, by task: regularisers of their own parts."""
        return {}

    def start_epoch(self, epoch: int, epochs: int) -> None:
        """Take note of an epoch of training, counted from zero, of so many; few models anneal something."""

    def task_parameters(self, task: str) -> list[nn.Parameter]:
        """Return the parameters that the loss of this task alone reaches."""
        return _parameters(self.task_modules(task))

    def shared_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that the losses of several tasks reach."""
        own = {id(parameter) for task in self.tasks for parameter in self.task_parameters(task)}
        return [parameter for parameter in self.parameters() if id(parameter) not in own]


def _parameters(modules: Iterable[nn.Module]) -> list[nn.Parameter]:
    return [parameter for module in modules for parameter in module.parameters()]
