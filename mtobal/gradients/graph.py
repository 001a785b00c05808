"""The autograd graph below the losses, and where the tasks meet in it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge

from mtobal.errors import UsageError
from mtobal.gradients.compiled import explained
from mtobal.gradients.walk import Edge, edges_below, is_sink, nodes_below, reduces_in_first_pass


@dataclass(frozen=True)
class Graph:
    """The operations below K losses.

    A node that one loss reaches belongs to that task's decoder, and a node that several reach to the trunk. All
    that lies below the trunk is trunk.

    Attributes
    ----------
    roots : list of K edges
        Where the gradient of each loss enters.
    tasks : mapping from node to int
        Bit k is set where loss k reaches the node.
    consumers : mapping from node to list of (node, int)
        The operations that read what the node gave, and at which of their inputs.
    leaves : mapping from int to node
        The node that stands for a leaf tensor, by the id of the tensor.
    has_sink : bool
        Whether a data-parallel module sent its outputs through one operation, so that a backward pass through one
        decoder visits the others.
    """

    roots: list[Edge]
    tasks: dict[Node, int]
    consumers: dict[Node, list[tuple[Node, int]]]
    leaves: dict[int, Node]
    has_sink: bool = False

    def reach(self, leaf: Tensor) -> list[int]:
        """Return the losses that reach a leaf."""
        node = self.leaves.get(id(leaf))
        mask = 0 if node is None else self.tasks[node]
        return [task for task in range(len(self.roots)) if mask >> task & 1]

    def users(self, leaf: Tensor) -> set[int | None]:
        """Return the losses whose decoders use a leaf, with None for the trunk."""
        node = self.leaves[id(leaf)]
        roots = {task for task, (root, _) in enumerate(self.roots) if root is node}
        return roots | {self.owner(consumer) for consumer, _ in self.consumers[node]}

    def owner(self, node: Node) -> int | None:
        """Return the loss whose decoder the node belongs to, or None for the trunk."""
        mask = self.tasks[node]
        return None if mask & (mask - 1) else mask.bit_length() - 1

    def enters_at_root(self, task: int) -> bool:
        """Return whether a loss is itself part of the trunk, as one that another loss is computed from."""
        node = self.roots[task][0]
        return self.owner(node) is None and bool(node.next_functions)

    def entries(self) -> list[list[Edge]]:
        """Return the edges on which the decoder of each task enters the trunk. A leaf is no part of the trunk."""
        entries: list[dict[Edge, None]] = [{} for _ in self.roots]
        for node, consumers in self.consumers.items():
            if self.owner(node) is not None or not node.next_functions:
                continue
            for consumer, slot in consumers:
                task = self.owner(consumer)
                if task is not None:
                    entries[task][node, edges_below(consumer)[slot][1]] = None
        return [list(edges) for edges in entries]

    def are_nested(self, edges: Iterable[Edge]) -> bool:
        """Return whether one of the operations lies below another."""
        nodes = {node for node, _ in edges}
        if len(nodes) < 2:
            return False
        pending = list(nodes)
        seen: set[Node] = set()
        while pending:
            for below in nodes_below(pending.pop()):
                if below in nodes:
                    return True
                if below not in seen:
                    seen.add(below)
                    pending.append(below)
        return False


def read_graph(losses: Sequence[Tensor]) -> Graph:
    """Walk the graph below the losses once."""
    roots = [get_gradient_edge(loss) for loss in losses]
    consumers: dict[Node, list[tuple[Node, int]]] = {}
    leaves: dict[int, Node] = {}
    order: list[Node] = []  # every node after all that lie below it
    for root in roots:
        if root.node in consumers:
            continue
        consumers[root.node] = []
        pending = [(root.node, enumerate(edges_below(root.node)))]
        while pending:
            node, edges = pending[-1]
            for slot, (below, _) in edges:
                if below is None:
                    continue
                seen = below in consumers
                consumers.setdefault(below, []).append((node, slot))
                if not seen:
                    pending.append((below, enumerate(edges_below(below))))
                    break
            else:
                pending.pop()
                order.append(node)
                variable = getattr(node, "variable", None)
                if variable is not None:
                    leaves[id(variable)] = node
    sinks = {below for node in order for below, _ in node.next_functions if below is not None and is_sink(below)}
    if any(map(reduces_in_first_pass, sinks)):
        raise UsageError(
            "static_graph=True of DistributedDataParallel reduces gradients in the first of several backward "
            "passes: leave it out, compute the losses inside the wrapped module, or use the Lightning callback."
        )
    tasks = dict.fromkeys(order, 0)
    for task, root in enumerate(roots):
        tasks[root.node] |= 1 << task
    for node in reversed(order):
        for below in nodes_below(node):
            tasks[below] |= tasks[node]
    return Graph([(root.node, root.output_nr) for root in roots], tasks, consumers, leaves, bool(sinks))


def differentiate(
    outputs: Sequence[Tensor | Edge],
    cotangents: Sequence[Tensor],
    inputs: Sequence[Tensor | Edge],
    *,
    retain_graph: bool,
    batched: bool = False,
) -> list[Tensor | None]:
    """Run one backward pass between two sets of places in the graph.

    Parameters
    ----------
    outputs : sequence of tensors or edges
        Where the pass starts.
    cotangents : sequence of Tensor
        The gradients that arrive there; with `batched`, each has a leading dimension over tasks.
    inputs : sequence of tensors or edges
        Where gradients are wanted. Only what is needed for these is computed.
    retain_graph : bool
        Whether what the visited operations saved outlives the pass.

    Returns
    -------
    list of Tensor or None
        None where the outputs do not depend on the input.
    """
    if not inputs or not outputs:
        return [None] * len(inputs)
    with explained():
        return list(
            torch.autograd.grad(
                [_place(output) for output in outputs],
                [_place(wanted) for wanted in inputs],
                grad_outputs=list(cotangents),
                retain_graph=retain_graph,
                allow_unused=True,
                is_grads_batched=batched,
            )
        )


def _place(place: Tensor | Edge) -> Any:
    return place if isinstance(place, Tensor) else GradientEdge(*place)
