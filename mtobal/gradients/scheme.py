"""From the text that a user writes to the way in which per-task gradients are taken."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from mtobal.errors import UsageError, unknown_name
from mtobal.gradients.batched import Batched
from mtobal.gradients.compiled import check_apart, check_repeats, is_compiled
from mtobal.gradients.ghost import ghost
from mtobal.gradients.graph import differentiate, read_graph
from mtobal.gradients.loop import loop
from mtobal.gradients.measured import Measured
from mtobal.gradients.partition import Partition
from mtobal.gradients.rows import Rows
from mtobal.gradients.task_gradients import Engine, TaskGradients
from mtobal.options import resolve_options

# The first and the last need to know the strategy or the representation before they can say which engine.
_MAKE: dict[str, Callable[..., Engine | None]] = {
    "auto": lambda: None,
    "loop": lambda: loop,
    "ghost": lambda: ghost,
    "batched": Batched,
    "measured": Measured,
    "representation": lambda: None,
}
_APPROXIMATIONS = ("every", "fraction", "layers")

_log = logging.getLogger("mtobal")


class Scheme:
    """A way to take per-task gradients.

    Parameters
    ----------
    parts : sequence of (str, mapping)
        One name and its options, and perhaps ``("every", {"n": n})``, and ``("fraction", {"f": f})`` or
        ``("layers", {"names": names})``.
    reads : str
        What the strategy reads.

    Attributes
    ----------
    name : str
        ``auto`` takes ``loop`` for a strategy that reads the gradients themselves, and ``ghost`` for all others.
        ``ghost`` decides layer by layer, from sizes alone, and does what ``loop`` does where nothing is to be
        gained. So the choice is the same in every run, whatever else the machine is doing.
    every : int
        How many steps the weights of one solution serve.
    layers : tuple of str
        Dotted names of the modules or parameters whose gradients stand for all in the Gramian; empty for all.
    reads_representation : bool
        Whether the gradients are those of the shared representation, which `take` does not know of.

    Raises
    ------
    UsageError
        Unknown name, unknown option, two names, or something that the strategy has no use for.
    """

    def __init__(self, parts: Sequence[tuple[str, Mapping[str, Any]]], reads: str) -> None:
        names: dict[str, Mapping[str, Any]] = {}
        self.every = 1
        self.fraction = 1.0
        self.layers: tuple[str, ...] = ()
        for name, options in parts:
            if name == "every":
                self.every = _every(**resolve_options("gradients='every'", _every, options))
            elif name == "fraction":
                self.fraction = _fraction(**resolve_options("gradients='fraction'", _fraction, options))
            elif name == "layers":
                self.layers = _layers(**resolve_options("gradients='layers'", _layers, options))
            elif name in _MAKE:
                names[name] = options
            else:
                raise unknown_name("way to take gradients", name, (*_MAKE, *_APPROXIMATIONS))
        if len(names) > 1:
            raise UsageError(f"gradients: {' and '.join(map(repr, names))} exclude each other; keep one of them.")
        [(self.name, options)] = names.items() or [("auto", {})]
        make = _MAKE[self.name]
        self._engine = make(**resolve_options(f"gradients={self.name!r}", make, options))
        self._reads = reads
        self.reads_representation = "representation" in (reads, self.name)
        if reads == "jacobian" and (self.reads_representation or self.approximates):
            raise UsageError(
                "the strategy reads the gradients of all parameters at every step: choose auto, loop, ghost, "
                "batched or measured for gradients=, without every, fraction and layers."
            )
        if self.reads_representation and self.approximates:
            raise UsageError(
                "gradients of the representation cost no more than a step in between: leave every, fraction and "
                "layers out."
            )
        if self.fraction < 1 and self.layers:
            raise UsageError("gradients: 'fraction' and 'layers' exclude each other; keep one of them.")
        self._announced = self._checked = False

    @property
    def approximates(self) -> bool:
        """Whether the weights come from an earlier step, part of the batch or some of the layers."""
        return self.every > 1 or self.aggregates_alone

    @property
    def aggregates_alone(self) -> bool:
        """Whether batches that are accumulated are aggregated one by one: no rows of all parameters are kept."""
        return self.fraction < 1 or bool(self.layers)

    @property
    def choice(self) -> str | None:
        """The engine that ``measured`` has kept."""
        return self._engine.choice if isinstance(self._engine, Measured) else None

    @choice.setter
    def choice(self, name: str | None) -> None:
        if isinstance(self._engine, Measured):
            self._engine.choice = name

    def finished(self) -> None:
        """Note that the final gradients of a step have been made of what `take` returned."""
        if isinstance(self._engine, Measured):
            self._engine.finished()

    def take(
        self, losses: list[Tensor], active: Sequence[int], partition: Partition, cotangent: Tensor
    ) -> TaskGradients:
        """Differentiate the losses; see `run_decoders` for the parameters."""
        engine = self._engine or (loop if self._reads == "jacobian" else ghost)
        if not self._checked:
            _check_compiled(losses, partition, cotangent)
            self._checked = True
        gradients = engine(losses, active, partition, cotangent)
        if self.name == "auto" and not self._announced:
            self._announced = True
            _log.info("gradients=auto: %s", _reason(gradients, self._reads))
        return gradients


def _check_compiled(losses: Sequence[Tensor], partition: Partition, cotangent: Tensor) -> None:
    """Make sure that several backward passes can go through what is compiled, and tell the tasks apart."""
    graph = read_graph(losses)
    if not is_compiled(graph.tasks):
        return
    check_apart(graph)
    seeds = [cotangent.to(loss.device, loss.dtype).reshape(loss.shape) for loss in losses]
    parameters = list(partition.parameters.values())
    first, second = (differentiate(losses, seeds, parameters, retain_graph=True) for _ in range(2))
    check_repeats(first, second)


def _every(*, n: int) -> int:
    if n < 1:
        raise UsageError(f"gradients='every': n must be at least 1, not {n}.")
    return n


def _fraction(*, f: float) -> float:
    if not 0 < f <= 1:
        raise UsageError(f"gradients='fraction': f must be above 0 and at most 1, not {f:g}.")
    return f


def _layers(*, names: str | tuple[str, ...] | list[str]) -> tuple[str, ...]:
    found = (names,) if isinstance(names, str) else tuple(names)
    if not found:
        raise UsageError("gradients='layers': name at least one module or parameter.")
    return found


def _reason(gradients: TaskGradients, reads: str) -> str:
    """Say which engine runs, and why."""
    if reads == "jacobian":
        return "loop, because the strategy reads the gradients themselves"
    sizes = [parameter.numel() for parameter in gradients.partition.parameters.values()]
    rows = [place for piece in gradients.pieces if isinstance(piece, Rows) for place in piece.places]
    kept = [place for piece in gradients.pieces if not isinstance(piece, Rows) for place in piece.places]
    if not kept:
        return f"loop, because inputs and cotangents are cheaper for none of {len(rows)} shared parameters"
    share = sum(sizes[place] for place in kept) / sum(sizes[place] for place in kept + rows)
    return (
        f"ghost, because inputs and cotangents are cheaper than {gradients.num_tasks} gradients for {len(kept)} "
        f"of {len(kept) + len(rows)} shared parameters, which hold {share:.0%} of the numbers"
    )
