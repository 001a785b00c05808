"""Operations whose weight gradient is a product of what went in and the cotangent of what came out.

An operation is recognised by its node in the autograd graph, which holds the input. That finds a layer however it
was called (as a module, as a function, twice, with a weight that another layer uses too), needs no hook in the
model, and costs nothing while nobody asks. Hooks of the user's on tensors and modules are seen; what one on the
operation's own node (`torch.autograd.graph.Node.register_hook`) makes of the weight gradient is not.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.graph import Node

from mtobal.gradients.graph import Graph
from mtobal.gradients.walk import Edge


@dataclass(frozen=True)
class Sizes:
    """Sizes of a weight gradient ``sum over n of d_n a_n^T``, in each of some groups of channels.

    Attributes
    ----------
    groups : int
    positions : int
        How many n there are.
    inputs, outputs : int
        Lengths of a_n and d_n.
    """

    groups: int
    positions: int
    inputs: int
    outputs: int


class ProductUse(Protocol):
    """One use of a weight whose gradient is a sum of products."""

    edge: Edge
    sizes: Sizes

    def unpack(self) -> None:
        """Take the input from the graph, before a backward pass frees it."""

    def inputs(self) -> Tensor:
        """Return what went in, of shape (groups, positions, inputs)."""

    def arranged(self, cotangent: Tensor) -> Tensor:
        """Return the cotangent of what came out in the shape (groups, positions, outputs)."""

    def gradient(self, cotangents: Tensor) -> Tensor:
        """Return the weight gradient for cotangents of shape (groups, positions, outputs)."""


class LinearUse:
    """A product with a matrix, as in `torch.nn.Linear`."""

    def __init__(self, node: Node, weight: Tensor, transposed: bool) -> None:
        self.edge: Edge = (node, 0)
        self.transposed = transposed  # the weight is stored as outputs by inputs
        positions, outputs = output_shape(node)
        self.sizes = Sizes(1, positions, weight.numel() // outputs, outputs)
        self.saved: Tensor

    def unpack(self) -> None:
        node: Any = self.edge[0]
        saved: Tensor = node._saved_mat1 if node.name() == "AddmmBackward0" else node._saved_self
        self.saved = at_least_float32(saved.detach())

    def inputs(self) -> Tensor:
        return self.saved[None]

    def arranged(self, cotangent: Tensor) -> Tensor:
        return cotangent[None]

    def gradient(self, cotangents: Tensor) -> Tensor:
        [outputs] = cotangents
        left, right = (outputs, self.saved) if self.transposed else (self.saved, outputs)
        return left.mT @ right


class ConvolutionUse:
    """A convolution over any number of dimensions, with stride, padding, dilation and groups."""

    def __init__(self, node: Node, weight: Tensor) -> None:
        geometry: Any = node
        self.edge: Edge = (node, 0)
        self.weight = weight.detach()
        self.stride: list[int] = geometry._saved_stride
        self.padding: list[int] = geometry._saved_padding
        self.dilation: list[int] = geometry._saved_dilation
        groups: int = geometry._saved_groups
        self.batch, channels, *self.space = output_shape(node)
        self.sizes = Sizes(groups, self.batch * math.prod(self.space), weight[0].numel(), channels // groups)
        self.saved: Tensor

    def unpack(self) -> None:
        node: Any = self.edge[0]
        self.saved = at_least_float32(node._saved_input.detach())

    def inputs(self) -> Tensor:
        sides = [side for padding in reversed(self.padding) for side in (padding, padding)]
        patches = torch.nn.functional.pad(self.saved, sides) if any(sides) else self.saved
        kernel = self.weight.shape[2:]
        for axis, (width, stride, dilation) in enumerate(zip(kernel, self.stride, self.dilation, strict=True)):
            patches = patches.unfold(2 + axis, dilation * (width - 1) + 1, stride)[..., ::dilation]
        # From (batch, channels, *space, *kernel) to (groups, batch, *space, channels of the group, *kernel).
        grouped = _split(patches, 1, (self.sizes.groups, -1)).movedim(2, 2 + len(kernel)).movedim(1, 0)
        return grouped.reshape(self.sizes.groups, self.sizes.positions, self.sizes.inputs)

    def arranged(self, cotangent: Tensor) -> Tensor:
        return _split(cotangent, 1, (self.sizes.groups, -1)).movedim(2, -1).movedim(1, 0).flatten(1, -2)

    def gradient(self, cotangents: Tensor) -> Tensor:
        grouped = _split(cotangents, 1, (self.batch, *self.space)).movedim(-1, 2).movedim(0, 1)
        gradient: Tensor = torch.ops.aten.convolution_backward(
            grouped.flatten(1, 2),
            self.saved,
            self.weight.to(self.saved.dtype),
            None,  # no gradient of a bias
            self.stride,
            self.padding,
            self.dilation,
            False,  # not transposed
            [0] * len(self.space),
            self.sizes.groups,
            [False, True, False],  # of the weight alone
        )[1]
        return gradient


class LookupUse:
    """A choice of rows from a table, as in `torch.nn.Embedding`."""

    def __init__(self, node: Node) -> None:
        self.edge: Edge = (node, 0)
        self.positions = math.prod(output_shape(node)[:-1])
        self.indices: Tensor
        self.padding: int

    def unpack(self) -> None:
        node: Any = self.edge[0]
        self.indices = node._saved_indices.flatten()
        # This row gets no gradient. Where there is no such row, the node holds -1 as an unsigned number.
        self.padding = node._saved_padding_idx


def product_uses(graph: Graph, weight: Tensor) -> list[ProductUse]:
    """Return all uses of a weight; none if one is no product or a decoder's, or if two differ in kind."""
    uses: list[ProductUse] = []
    kinds = set()
    for node, slot, transposed in _users(graph, weight):
        operation: Any = node
        if graph.owner(node) is not None or _is_complex(operation):
            return []
        name = node.name()
        if (name, slot) == ("MmBackward0", 1) or ((name, slot) == ("AddmmBackward0", 2) and _is_plain(operation)):
            uses.append(LinearUse(node, weight, transposed))
        elif (name, slot, transposed) == ("ConvolutionBackward0", 1, False) and not operation._saved_transposed:
            uses.append(ConvolutionUse(node, weight))
        else:
            return []
        kinds.add((name, transposed, replace(uses[-1].sizes, positions=0)))
    return uses if len(kinds) == 1 else []


def lookup_uses(graph: Graph, table: Tensor) -> list[LookupUse]:
    """Return all uses of a table, or nothing if it has one that is no lookup or belongs to a decoder."""
    uses: list[LookupUse] = []
    for node, _, transposed in _users(graph, table):
        operation: Any = node
        if graph.owner(node) is not None or transposed or node.name() != "EmbeddingBackward0":
            return []
        if operation._saved_scale_grad_by_freq or _is_complex(operation):
            return []
        uses.append(LookupUse(node))
    return uses


def bias_edges(graph: Graph, bias: Tensor) -> list[Edge]:
    """Return the outputs to which products add a parameter, or nothing if it is used in another way too."""
    edges: list[Edge] = []
    for node, slot, transposed in _users(graph, bias):
        added = (node.name(), slot) in (("AddmmBackward0", 0), ("ConvolutionBackward0", 2))
        if transposed or not added or output_shape(node)[1:2] != bias.shape:
            return []
        edges.append((node, 0))
    return edges


def bias_gradient(cotangent: Tensor) -> Tensor:
    """Sum the cotangent of what came out of a product over all but the channels, which are its second axis."""
    return at_least_float32(cotangent).sum([axis for axis in range(cotangent.dim()) if axis != 1])


def at_least_float32(tensor: Tensor) -> Tensor:
    """Convert half precision to single precision."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _split(tensor: Tensor, axis: int, sizes: Sequence[int]) -> Tensor:
    """Replace an axis by several."""
    split: Tensor = tensor.unflatten(axis, sizes)  # type: ignore[no-untyped-call]
    return split


def output_shape(node: Node) -> tuple[int, ...]:
    """Return the shape of what an operation with one output gave."""
    operation: Any = node
    return tuple(operation._input_metadata[0].shape)


def _is_complex(operation: Any) -> bool:
    """Return whether an operation with one output gave complex numbers."""
    return bool(operation._input_metadata[0].dtype.is_complex)


def _is_plain(addition: Any) -> bool:
    """Return whether an ``addmm`` adds without factors."""
    return bool(addition._saved_alpha == addition._saved_beta == 1)


def _users(graph: Graph, parameter: Tensor) -> Iterator[tuple[Node, int, bool]]:
    """Follow a parameter through transposes and conversions of type to the operations that use it."""
    pending = [(graph.leaves[id(parameter)], False)]
    while pending:
        node, transposed = pending.pop()
        for consumer, slot in graph.consumers[node]:
            if consumer.name() == "TBackward0":
                pending.append((consumer, not transposed))
            elif consumer.name() == "ToCopyBackward0":
                pending.append((consumer, transposed))
            else:
                yield consumer, slot, transposed
