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


def check_sum(rows: Iterable[dict[int, Tensor]], expected: dict[int, Tensor]) -> None:
    """Make sure that the gradients of all losses add up to the gradient of their sum.

    Parameters
    ----------
    rows : iterable of K mappings from int to Tensor
        The gradients of each loss, by the place of the parameter.
    expected : mapping from int to Tensor
        Those of the sum.

    Raises
    ------
    UsageError
        They do not: a graph that an earlier run compiled for a single backward pass was taken from a cache.
    """
    total: dict[int, Tensor] = {}
    for row in rows:
        for place, gradient in row.items():
            total[place] = total[place] + gradient if place in total else gradient
    for place, gradient in expected.items():
        found = total.get(place, torch.zeros_like(gradient))
        if not torch.allclose(found, gradient, rtol=1e-2, atol=1e-3 * float(gradient.abs().max())):
            raise UsageError(
                "the gradients of the tasks do not add up to that of the summed losses: torch.compile took a "
                "graph from its cache that serves one backward pass only. Set TORCHINDUCTOR_CACHE_DIR to an empty "
                "folder, or compile with fresh caches."
            )
