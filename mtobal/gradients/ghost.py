"""Per-task gradients that are never written out, as in ghost clipping.

The gradient of task k with respect to a weight is ``sum over n of d_n a_n^T``, where a position n is one sample of
a linear layer or one output pixel of a convolution, a_n what went into the weight there, and d_n the cotangent of
what came out. All tasks have the a_n in common. With A and D_k for all positions at once,

    <g_k, g_l> = <A^T D_k, A^T D_l> = <(A A^T) D_k, D_l>,      sum over k of w_k g_k = A^T (sum over k of w_k D_k),

so inner products and the final gradient need the cotangents of the layer's output and no weight gradient of any
task. Where positions are few, that is less work and less memory than the weight gradients; where they are many, as
in the early layers of a convolutional network, the weight gradients are cheaper and are taken instead. Both are
exact.

The trick is from the clipping of per-example gradients (Goodfellow 2015, arXiv:1510.01799; Li et al. 2022,
arXiv:2110.05679; Bu et al. 2022, arXiv:2205.10683).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mtobal.gradients.decoders import Decoded, run_decoders
from mtobal.gradients.layers import (
    LookupUse,
    ProductUse,
    Sizes,
    at_least_float32,
    bias_edges,
    bias_gradient,
    lookup_uses,
    product_uses,
)
from mtobal.gradients.partition import Partition
from mtobal.gradients.rows import combine
from mtobal.gradients.task_gradients import TaskGradients
from mtobal.gradients.walk import Edge
from mtobal.ops import gramian


def cheaper(sizes: Sizes, num_tasks: int) -> bool:
    """Return whether inputs and cotangents take fewer multiplications than weight gradients.

    That is, per position and group: a row of ``A A^T``, its products with the cotangents of all tasks, and one
    weight gradient in the end, against one weight gradient a task.
    """
    weights = sizes.inputs * sizes.outputs
    return sizes.positions * (sizes.inputs + num_tasks * sizes.outputs) + weights < num_tasks * weights


def ghost(
    losses: list[Tensor],
    active: Sequence[int],
    partition: Partition,
    cotangent: Tensor,
    *,
    pays: Callable[[Sizes, int], bool] = cheaper,
) -> TaskGradients:
    """Keep inputs and cotangents of the layers for which that pays, and the gradients of all other parameters.

    Parameters
    ----------
    losses, active, partition, cotangent
        As for `run_decoders`.
    pays : callable
        Answers for what sizes of a layer, and for how many tasks that reach it.
    """
    decoded = run_decoders(losses, active, partition, cotangent)
    kept = _kept_pieces(decoded, pays)
    for piece in kept:
        piece.unpack()
    edges = list(dict.fromkeys(edge for piece in kept for edge in piece.edges))
    biases = _biases(decoded, set(edges))
    elsewhere = {*biases, *(place for piece in kept for place in piece.places)}
    places = [place for place in decoded.trunk if place not in elsewhere]

    def receive(task: int, found: Sequence[Tensor | None]) -> None:
        cotangents = dict(zip(edges, found, strict=False))
        decoded.add(task, places, found[len(edges) :])
        for piece in kept:
            piece.receive(task, [cotangents[edge] for edge in piece.edges])
        for place, outputs in biases.items():
            for edge in outputs:
                arrived = cotangents[edge]
                if arrived is not None:
                    decoded.add(task, [place], [bias_gradient(arrived).to(decoded.parameters[place])])

    decoded.descend([*edges, *(decoded.parameters[place] for place in places)], receive)
    return decoded.finish(kept)


def _kept_pieces(decoded: Decoded, pays: Callable[[Sizes, int], bool]) -> list[Products | Lookups]:
    """Choose the parameters of which no gradients are written out."""
    pieces: list[Products | Lookups] = []
    for place in decoded.trunk:
        parameter = decoded.parameters[place]
        num_tasks = len(decoded.graph.reach(parameter))
        products = product_uses(decoded.graph, parameter)
        if products and pays(_joined_sizes(products), num_tasks):
            pieces.append(Products(place, parameter, products, len(decoded.rows)))
            continue
        lookups = lookup_uses(decoded.graph, parameter)
        if lookups and sum(use.positions for use in lookups) <= len(parameter):
            pieces.append(Lookups(place, parameter, lookups, len(decoded.rows)))
    return pieces


def _joined_sizes(uses: Sequence[ProductUse]) -> Sizes:
    """Return the sizes of a weight gradient that is a sum over several uses."""
    first = uses[0].sizes
    return Sizes(first.groups, sum(use.sizes.positions for use in uses), first.inputs, first.outputs)


def _biases(decoded: Decoded, edges: set[Edge]) -> dict[int, list[Edge]]:
    """Find the biases whose gradients are sums of cotangents that are asked for anyway."""
    biases = {}
    for place in decoded.trunk:
        parameter = decoded.parameters[place]
        found = bias_edges(decoded.graph, parameter)
        if found and edges.issuperset(found):
            biases[place] = found
    return biases


class Products:
    """A weight whose gradients are products of inputs, which all tasks share, and cotangents.

    Several uses of one weight are one use with all their positions.
    """

    def __init__(self, place: int, weight: Tensor, uses: list[ProductUse], num_tasks: int) -> None:
        self.places = (place,)
        self.edges = [use.edge for use in uses]
        self._weight, self._uses = weight, uses
        self._sizes = _joined_sizes(uses)
        self._cotangents: Tensor | None = None  # (tasks, groups, positions, outputs)
        self._received = [False] * num_tasks

    def unpack(self) -> None:
        """Take the inputs from the graph, before a backward pass frees them."""
        for use in self._uses:
            use.unpack()

    def receive(self, task: int, cotangents: Sequence[Tensor | None]) -> None:
        """Keep the cotangents of a task, one a use."""
        for part, use, cotangent in zip(self._parts(), self._uses, cotangents, strict=True):
            if cotangent is None:
                continue
            if self._cotangents is None:
                sizes = (len(self._received), self._sizes.groups, self._sizes.positions, self._sizes.outputs)
                self._cotangents = at_least_float32(cotangent).new_zeros(sizes)
            self._cotangents[task, :, part] = use.arranged(cotangent)
            self._received[task] = True

    def gramian(self) -> Tensor:
        gramian = torch.zeros(len(self._received), len(self._received), dtype=torch.float64)
        if self._cotangents is None:
            return gramian
        inputs = [use.inputs() for use in self._uses]
        joined = inputs[0] if len(inputs) == 1 else torch.cat(inputs, 1)
        between = joined @ joined.mT  # of positions
        del inputs, joined
        rows = []
        for task, cotangents in enumerate(self._cotangents):
            others = self._cotangents[: task + 1].flatten(1)
            rows.append(others @ (between @ cotangents).flatten())
        for task, row in enumerate(rows):
            gramian[task, : task + 1] = row
        return gramian.tril() + gramian.tril(-1).T

    def combine(self, weights: Sequence[float]) -> list[Tensor | None]:
        cotangents = [
            self._cotangents[task] if self._cotangents is not None and received else None
            for task, received in enumerate(self._received)
        ]
        combined = combine(cotangents, weights)
        return [None if combined is None else self._gradient(combined)]

    def gradients(self, place: int) -> list[Tensor | None]:
        return [
            self._gradient(self._cotangents[task]) if self._cotangents is not None and received else None
            for task, received in enumerate(self._received)
        ]

    def _parts(self) -> list[slice]:
        """Return where each use lies among all positions."""
        ends = [0, *itertools.accumulate(use.sizes.positions for use in self._uses)]
        return [slice(start, end) for start, end in itertools.pairwise(ends)]

    def _gradient(self, cotangents: Tensor) -> Tensor:
        parts = [use.gradient(cotangents[:, part]) for part, use in zip(self._parts(), self._uses, strict=True)]
        gradient = parts[0]
        for part in parts[1:]:
            gradient = gradient + part
        return gradient.to(self._weight).reshape(self._weight.shape)


class Lookups:
    """A table of which few rows were looked up; the gradients of all others are zero and not kept."""

    def __init__(self, place: int, table: Tensor, uses: list[LookupUse], num_tasks: int) -> None:
        self.places = (place,)
        self.edges = [use.edge for use in uses]
        self._table, self._uses = table, uses
        self._rows: list[Tensor | None] = [None] * num_tasks  # each (found, width)
        self._found: Tensor  # the rows that were looked up, each once
        self._inverse: Tensor  # at which of these each position is

    def unpack(self) -> None:
        """Take the indices from the graph, before a backward pass frees them."""
        for use in self._uses:
            use.unpack()
        indices = torch.cat([use.indices for use in self._uses])
        self._found, self._inverse = torch.unique(indices, return_inverse=True)

    def receive(self, task: int, cotangents: Sequence[Tensor | None]) -> None:
        """Add up the cotangents of a task, row by row."""
        parts = torch.split(self._inverse, [use.positions for use in self._uses])
        for use, part, cotangent in zip(self._uses, parts, cotangents, strict=True):
            if cotangent is None:
                continue
            sums = at_least_float32(cotangent).new_zeros(len(self._found), cotangent.shape[-1])
            sums.index_add_(0, part, at_least_float32(cotangent).reshape(len(part), -1))
            if use.padding < len(self._table):
                sums[self._found == use.padding] = 0
            known = self._rows[task]
            self._rows[task] = sums if known is None else known + sums

    def gramian(self) -> Tensor:
        return gramian([[row] for row in self._rows])

    def combine(self, weights: Sequence[float]) -> list[Tensor | None]:
        combined = combine(self._rows, weights)
        return [None if combined is None else self._scattered(combined)]

    def gradients(self, place: int) -> list[Tensor | None]:
        return [None if row is None else self._scattered(row) for row in self._rows]

    def _scattered(self, rows: Tensor) -> Tensor:
        return torch.zeros_like(self._table).index_copy_(0, self._found, rows.to(self._table.dtype))
