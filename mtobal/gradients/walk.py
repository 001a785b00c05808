"""Steps from an operation of the autograd graph to those below it."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.autograd.graph import Node

Edge = tuple[Node, int]  # a place in the graph at which gradients arrive: the output of an operation


def edges_below(node: Node) -> list[tuple[Node | None, int]]:
    """Return the operations that gave what this one read, and which of their outputs it was.

    `torch.nn.parallel.DistributedDataParallel` may send all its outputs through one operation, each unchanged. It
    is passed over, because the outputs do not depend on each other.
    """
    edges = []
    for below, output in node.next_functions:
        while below is not None and is_sink(below):
            below, output = below.next_functions[output]
        edges.append((below, output))
    return edges


def nodes_below(node: Node) -> list[Node]:
    """Return the operations that gave what this one read."""
    return [below for below, _ in edges_below(node) if below is not None]


def leaf_of(node: Any) -> Tensor | None:
    """Return the leaf tensor that a node stands for; None for an operation."""
    return node.variable if type(node).__name__ == "AccumulateGrad" else None


def is_sink(node: Node) -> bool:
    """Return whether the operation is that of all outputs of a data-parallel module."""
    return type(node).__name__ == "_DDPSinkBackward"


def reduces_in_first_pass(sink: Any) -> bool:
    """Return whether the operation starts the reduction of all gradients when it first runs backward."""
    return bool(sink.ddp_weakref().static_graph)
