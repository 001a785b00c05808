"""The autograd graph below the losses, and where the tasks meet in it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge

from mtobal.errors import UsageError
from mtobal.gradients.compiled import explained
from mtobal.gradients.walk import Edge, edges_below, is_sink, leaf_of, nodes_below, reduces_in_first_pass

Slot = tuple[Node, int]  # an operation, and at which of its inputs it reads


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
    consumers : mapping from node to list of slots
        The operations that read what the node gave, and at which of their inputs.
    leaves : mapping from int to node
        The node that stands for a leaf tensor, by the id of the tensor.
    has_sink : bool
        Whether a data-parallel module sent its outputs through one operation, so that a backward pass through one
        decoder visits the others.
    """

    roots: list[Edge]
    tasks: dict[Node, int]
    consumers: dict[Node, list[Slot]]
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

    def entries(self) -> list[dict[Edge, list[Slot]]]:
        """Return where the decoder of each task enters the trunk, and which of its operations read there.

        A leaf is no part of the trunk.
        """
        entries: list[dict[Edge, list[Slot]]] = [{} for _ in self.roots]
        for node, consumers in self.consumers.items():
            if self.owner(node) is not None or not node.next_functions:
                continue
            for consumer, slot in consumers:
                task = self.owner(consumer)
                if task is not None:
                    edge = node, edges_below(consumer)[slot][1]
                    entries[task].setdefault(edge, []).append((consumer, slot))
        return entries

    def readers(self, edge: Edge) -> list[Slot]:
        """Return the operations that read what came out at a place."""
        node, output = edge
        return [(one, slot) for one, slot in self.consumers[node] if edges_below(one)[slot][1] == output]

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
    consumers: dict[Node, list[Slot]] = {}
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
                leaf = leaf_of(node)
                if leaf is not None:
                    leaves[id(leaf)] = node
    sinks = {below for node in order for below, _ in node.next_functions if below is not None and is_sink(below)}
    if any(map(reduces_in_first_pass, sinks)):
        raise UsageError(
            "static_graph=True of DistributedDataParallel reduces gradients in the first of several backward "
            "passes: leave it out, compute the losses inside the wrapped module, or use the Lightning callback."
        )
    if any(type(node).__name__ == "CheckpointFunctionBackward" for node in order):
        raise UsageError(
            "a reentrant checkpoint hides its parameters from per-task gradients: pass use_reentrant=False to "
            "torch.utils.checkpoint.checkpoint, or choose a strategy that weighs losses, such as 'uw'."
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
        Where gradients are wanted: at an edge, what the operation there receives. Only what is needed for these is
        computed. Hooks on leaves do not run: they are for the gradient that is written in the end.
    retain_graph : bool
        Whether what the visited operations saved outlives the pass. It does in any case within a backward pass
        that a user runs with ``retain_graph=True``.

    Returns
    -------
    list of Tensor or None
        None where the outputs do not depend on the input; none of them is sparse.
    """
    if not inputs or not outputs:
        return [None] * len(inputs)
    leaves = [wanted for wanted in inputs if isinstance(wanted, Tensor) and wanted.is_leaf]
    edges = [wanted for wanted in inputs if not isinstance(wanted, Tensor)]
    with explained(), _without_hooks(leaves), _received(edges) as received:
        found = torch.autograd.grad(
            [_place(output) for output in outputs],
            [_place(wanted) for wanted in inputs],
            grad_outputs=list(cotangents),
            retain_graph=retain_graph or _user_retains_graph(),
            allow_unused=True,
            is_grads_batched=batched,
        )
    gradients = [
        gradient if isinstance(wanted, Tensor) else received.get(wanted, gradient)
        for wanted, gradient in zip(inputs, found, strict=True)
    ]
    return [
        gradient.to_dense() if gradient is not None and gradient.is_sparse else gradient for gradient in gradients
    ]


@contextmanager
def sent(slots: Mapping[Edge, Sequence[Slot]]) -> Iterator[dict[Edge, Tensor]]:
    """Add up what some operations send to the places that they read from, in the backward passes of a block.

    A pass that stops at such a place returns what the hooks on the tensor there have made of it, and they would
    run again in a pass that starts there.
    """
    arrived: dict[Edge, Tensor] = {}
    places: dict[Node, list[tuple[int, Edge]]] = {}
    for edge, readers in slots.items():
        for reader, slot in readers:
            places.setdefault(reader, []).append((slot, edge))

    def add(places: Sequence[tuple[int, Edge]], gradients: Sequence[Tensor | None], _: object) -> None:
        for slot, edge in places:
            gradient = gradients[slot]
            if gradient is not None:
                arrived[edge] = arrived[edge] + gradient if edge in arrived else gradient

    handles = [reader.register_hook(partial(add, found)) for reader, found in places.items()]
    try:
        yield arrived
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _received(edges: Iterable[Edge]) -> Iterator[dict[Edge, Tensor]]:
    """Take note of what the operations at some places receive, if they run: autograd leaves hooks out there."""
    received: dict[Edge, Tensor] = {}
    outputs: dict[Node, list[int]] = {}
    for node, output in edges:
        outputs.setdefault(node, []).append(output)

    def note(node: Node, gradients: Sequence[Tensor | None]) -> None:
        for output in outputs[node]:
            gradient = gradients[output]
            if gradient is not None:
                received[node, output] = gradient

    handles = [node.register_prehook(partial(note, node)) for node in outputs]
    try:
        yield received
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _without_hooks(leaves: Iterable[Tensor]) -> Iterator[None]:
    """Take the hooks off some leaves for a while."""
    kept = [(hooks, dict(hooks)) for hooks in (leaf._backward_hooks for leaf in leaves) if hooks]
    try:
        for hooks, _ in kept:
            hooks.clear()
        yield
    finally:
        for hooks, before in kept:
            hooks.update(before)


def _user_retains_graph() -> bool:
    """Return whether this runs within a backward pass with ``retain_graph=True``."""
    keeps: Any = torch._C._autograd._get_current_graph_task_keep_graph
    return torch._C._current_graph_task_id() >= 0 and bool(keeps())


def _place(place: Tensor | Edge) -> Any:
    return place if isinstance(place, Tensor) else GradientEdge(*place)
