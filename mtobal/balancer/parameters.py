"""The parameters that a step trains, and which tasks reach them."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from mtobal.errors import UsageError
from mtobal.gradients import Partition, Ranks, TaskGradients, find_partition
from mtobal.strategies import Composition


class Parameters:
    """Finds the parameters below the losses, and keeps what it has found from step to step.

    Parameters
    ----------
    strategy : Composition
        What it cannot do without, and how it is called.
    model : nn.Module or None
    shared_names : frozenset of str or None
        The parameters that the user declared shared.
    tasks : tuple of str or None

    Attributes
    ----------
    tasks : tuple of str or None
        The names of all tasks; None before the first step.
    partition : Partition or None
        The same for the parameters.
    """

    def __init__(
        self,
        strategy: Composition,
        model: nn.Module | None,
        shared_names: frozenset[str] | None,
        tasks: tuple[str, ...] | None,
    ) -> None:
        self.strategy = strategy
        self.model = model
        self.shared_names = shared_names
        self.tasks = tasks
        self.partition: Partition | None = None
        self._trainable: tuple[int, ...] = ()
        self._awaited: list[bool] = []  # whether the reducers of several ranks wait for a parameter in this step
        self._walked: frozenset[str] = frozenset()  # tasks whose graph has been searched for parameters

    @property
    def known_tasks(self) -> tuple[str, ...]:
        """The names of all tasks, from the first step on."""
        assert self.tasks is not None
        return self.tasks

    @property
    def known_partition(self) -> Partition:
        """The parameters, from the first step on."""
        assert self.partition is not None
        return self.partition

    def find(self, present: Mapping[str, Tensor], ranks: Ranks, joins: bool = False) -> None:
        """Sort the parameters at the first step of a task, and again when others have become trainable.

        Parameters
        ----------
        present : mapping from task to scalar tensor with graph
            All losses of this rank, those that are not finite too: its reducer waits for what they reach.
        ranks : Ranks
        joins : bool
            Whether the batch is aggregated together with the one before.
        """
        trainable = () if self.model is None else tuple(id(p) for p in self.model.parameters() if p.requires_grad)
        if self.model is None or trainable != self._trainable:
            self.partition, self._trainable, self._walked = None, trainable, frozenset()
        fresh = self.partition is None
        if fresh and (self.strategy.aggregation is not None or self.strategy.perturbation is not None):
            _refuse_sharded(self.strategy.spec, self.model)
        if fresh or not self._walked >= present.keys() or ranks.size > 1:
            assert self.tasks is not None
            losses = [present.get(task) for task in self.tasks]
            found = find_partition(losses, self.tasks, self.model, self.shared_names)
            self.partition = found if self.partition is None else self.partition.joined(found)
            self._walked |= present.keys()
            if ranks.size > 1:
                if fresh:
                    ranks.check_same(self.partition)
                self._agree(found, ranks, joins)
        if (
            self.strategy.aggregation is not None
            and len(present) > 1
            and not any(self.known_partition.shared_mask)
        ):
            self._miss_shared(present)

    def _agree(self, found: Partition, ranks: Ranks, joins: bool) -> None:
        """Let all ranks know the same parameters, and which of them their reducers wait for in this step.

        They do not wait for what a model that branches has left out this time. They do for the decoder of a task
        without a loss.
        """
        tasks = {
            id(parameter): tasks for parameter, tasks in zip(found.parameters.values(), found.reach, strict=True)
        }
        here = [tasks.get(id(parameter), frozenset()) for parameter in self.known_partition.parameters.values()]
        now = ranks.joined(replace(self.known_partition, reach=tuple(here))).reach
        self.partition = self.known_partition.extended(now)
        present: frozenset[int] = frozenset().union(*now)
        waited = [
            bool(reached) or all_time.isdisjoint(present)
            for reached, all_time in zip(now, self.partition.reach, strict=True)
        ]
        before = self._awaited if joins else [False] * len(waited)
        self._awaited = [one or other for one, other in zip(waited, before, strict=True)]

    def _miss_shared(self, present: Iterable[str]) -> None:
        """Refuse to aggregate nothing, unless the shared parameters may only be frozen for a while."""
        if self.model is None or all(parameter.requires_grad for parameter in self.model.parameters()):
            raise UsageError(
                f"{self.strategy.spec!r} aggregates gradients of shared parameters, but no trainable parameter "
                f"is reached by two of the losses {', '.join(present)}: was the encoder run under no_grad, "
                "detached, or checkpointed with use_reentrant=True? A strategy that weighs losses needs none."
            )
        warnings.warn(
            "no trainable parameter is shared, so only task-own parameters are trained until frozen ones become "
            "trainable.",
            RuntimeWarning,
            stacklevel=2,
        )

    def inputs(self, ranks: Ranks) -> dict[int, Tensor]:
        """Return the parameters to which the balanced loss writes gradients, by their place.

        The reducer of several ranks sees by itself to those that no task reaches, and only to those.
        """
        parameters = dict(enumerate(self.known_partition.parameters.values()))
        if ranks.size == 1:
            return parameters
        reach = self.known_partition.reach
        return {
            place: parameter for place, parameter in parameters.items() if reach[place] and self._awaited[place]
        }

    def widen(self, gradients: TaskGradients, partition: Partition, ranks: Ranks) -> TaskGradients:
        """Take note of parameters that a task reaches for the first time in this step."""
        wider = gradients.partition if ranks.size == 1 else ranks.joined(gradients.partition)
        self.remember(wider, partition)
        if wider.shared_mask == gradients.partition.shared_mask:
            return replace(gradients, partition=wider)
        return TaskGradients.of_rows(wider, gradients.rows(), gradients.scale)

    def remember(self, wider: Partition, partition: Partition) -> None:
        """Keep what a step has added to the partition with which it began, unless a later one has begun."""
        if self.partition is partition:
            self.partition = wider

    def complete(self, gradients: list[Tensor | None], active: Iterable[int], ranks: Ranks) -> list[Tensor | None]:
        """Write zeros where only other ranks have a gradient: their reducer waits for this one."""
        if ranks.size == 1:
            return gradients
        places = zip(gradients, self.known_partition.parameters.values(), self.known_partition.reach, strict=True)
        return [
            torch.zeros_like(parameter) if gradient is None and not tasks.isdisjoint(active) else gradient
            for gradient, parameter, tasks in places
        ]

    def nothing(self, ranks: Ranks) -> list[Tensor | None]:
        """Return no gradients, for a step that is skipped."""
        nothing: list[Tensor | None] = [None] * len(self.known_partition.parameters)
        return self.complete(nothing, range(len(self.known_tasks)), ranks)


def _refuse_sharded(spec: str, model: nn.Module | None) -> None:
    """Refuse a model of which every rank holds a part of each parameter: gradients of whole ones do not exist."""
    modules = [] if model is None else model.modules()
    kinds = {kind.__name__ for module in modules for kind in type(module).__mro__}
    if kinds & {"FSDPModule", "FullyShardedDataParallel"}:
        raise UsageError(
            f"{spec!r} needs per-task gradients of whole parameters, which a model under FSDP does not keep: use "
            "DistributedDataParallel, or a strategy that weighs losses, such as 'uw'."
        )
