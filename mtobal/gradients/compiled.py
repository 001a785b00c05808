"""Several backward passes through one compiled graph."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
import torch._functorch.config
from torch import Tensor
from torch.autograd.graph import Node

from mtobal.errors import UsageError
from mtobal.gradients.walk import edges_below

if TYPE_CHECKING:
    from mtobal.gradients.graph import Graph


def keep_buffers() -> None:
    """Let what `torch.compile` compiles from now on keep its saved tensors in a backward pass.

    By default it overwrites them, and a second pass is an error. This costs memory, and only in backward passes.
    """
    torch._functorch.config.donated_buffer = False


def is_compiled(nodes: Iterable[Node]) -> bool:
    """Return whether an operation is a compiled graph."""
    return any(type(node).__name__.startswith("CompiledFunction") for node in nodes)


@contextmanager
def explained() -> Iterator[None]:
    """Say what to do where a compiled graph has overwritten what a second pass needs."""
    try:
        yield
    except RuntimeError as error:
        if "donated buffer" not in str(error):
            raise
        raise UsageError(
            "a part of the model was compiled for a single backward pass: build the Balancer before the first "
            "forward pass of the compiled module."
        ) from error


def check_apart(graph: Graph) -> None:
    """Make sure that what belongs to one task alone is not compiled together with what belongs to another.

    Raises
    ------
    UsageError
        Two losses read different outputs of one compiled graph, which says nothing about what each depends on.
    """
    for node, consumers in graph.consumers.items():
        if not is_compiled([node]):
            continue
        outputs: dict[int, set[int]] = {}
        for consumer, slot in consumers:
            _, output = edges_below(consumer)[slot]
            for task in range(len(graph.roots)):
                if graph.tasks[consumer] >> task & 1:
                    outputs.setdefault(task, set()).add(output)
        if any(one.isdisjoint(other) for one, other in itertools.combinations(outputs.values(), 2)):
            raise UsageError(
                "torch.compile has made one operation of the shared layers and the decoders, in which the "
                "parameters of the tasks cannot be told apart: compile them separately, as in "
                "model.encoder = torch.compile(model.encoder)."
            )


def check_repeats(first: Iterable[Tensor | None], second: Iterable[Tensor | None]) -> None:
    """Make sure that a second backward pass through a compiled graph gives what the first gave.

    Equal passes are compared, so that a difference is not one of rounding, whatever the precision.

    Raises
    ------
    UsageError
        It does not: a graph that an earlier run compiled for a single backward pass was taken from a cache.
    """
    for one, other in zip(first, second, strict=True):
        if one is not None and other is not None and _differ(one, other):
            raise UsageError(
                "a second backward pass gives other gradients than the first: torch.compile took a graph from its "
                "cache that serves one backward pass only. Set TORCHINDUCTOR_CACHE_DIR to an empty folder, or "
                "compile with fresh caches."
            )


def _differ(one: Tensor, other: Tensor) -> bool:
    """Return whether two gradients differ by more than the order of additions; what has overflowed is left out."""
    one, other = one.float().nan_to_num(0.0, 0.0, 0.0), other.float().nan_to_num(0.0, 0.0, 0.0)
    return bool(torch.linalg.vector_norm(one - other) > 1e-2 * torch.linalg.vector_norm(one))
