"""Message passing on molecules: atoms exchange what they know, and the whole is read off all of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtobal.errors import UsageError
from mtobal.models.hard_sharing import HardSharing
from mtobal.tasks import Task

STEPS = 3
"""Rounds of messages, and looks of the readout at the atoms."""


class EdgeConditioned(nn.Module):
    """Means of messages, each of which is the sender's features times a matrix that a network makes of the edge.

    The matrix is linear in the last hidden features of that network. So the products of these and of the sender's
    features are summed at the receiver before they meet the weights: the matrices of the edges, by far the largest
    tensors, are never built.

    Parameters
    ----------
    features : int
        Of an atom.
    edge_features : int
        Of an edge.
    hidden : int
        Hidden features of the network that reads the edge.

    References
    ----------
    Gilmer et al., "Neural Message Passing for Quantum Chemistry", ICML 2017.

    Examples
    --------
    >>> layer = EdgeConditioned(8, edge_features=5, hidden=16)
    >>> edges = torch.tensor([[0, 1, 2], [1, 0, 0]])
    >>> layer(torch.rand(3, 8), edges, torch.rand(3, 5)).shape
    torch.Size([3, 8])
    """

    def __init__(self, features: int, edge_features: int, hidden: int) -> None:
        super().__init__()
        self.edge_hidden = nn.Linear(edge_features, hidden)
        self.edge_matrix = nn.Linear(hidden, features * features)
        self.root = nn.Linear(features, features)

    def forward(self, nodes: Tensor, edges: Tensor, edge_features: Tensor) -> Tensor:
        """Return new features of every atom; `edges` (2, E) says from which atom to which."""
        number, features = nodes.shape
        senders, receivers = edges
        hidden = F.relu(self.edge_hidden(edge_features))
        degrees = torch.bincount(receivers, minlength=number)
        order = receivers.argsort(stable=True)
        # Every atom has as many slots as the busiest one has edges; those that stay empty are zero.
        firsts = (degrees.cumsum(0) - degrees)[receivers[order]]
        slots = receivers[order], torch.arange(len(order), device=order.device) - firsts
        widest = int(degrees.max())
        # One more hidden feature, always 1, carries the bias of the matrix.
        read = F.pad(hidden, (0, 1), value=1.0)[order]
        shape = (number, widest)
        padded = read.new_zeros(*shape, read.shape[1]).index_put(slots, read)
        sent = nodes.new_zeros(*shape, features).index_put(slots, nodes[senders[order]])
        summed = padded.transpose(1, 2) @ sent  # (atoms, hidden + 1, features)
        weight = torch.cat([self.edge_matrix.weight, self.edge_matrix.bias[:, None]], dim=1)
        by_sender = weight.view(features, features, -1).permute(2, 0, 1).reshape(-1, features)
        messages = summed.flatten(1) @ by_sender
        result: Tensor = messages / degrees.clamp(min=1)[:, None] + self.root(nodes)
        return result


class SetReadout(nn.Module):
    """A memory that looks at all atoms of a molecule several times, each time with attention.

    Parameters
    ----------
    features : int
        Of an atom; the result has twice as many.

    References
    ----------
    Vinyals, Bengio and Kudlur, "Order Matters: Sequence to Sequence for Sets", ICLR 2016.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.memory = nn.LSTMCell(2 * features, features)

    def forward(self, nodes: Tensor, molecule: Tensor) -> Tensor:
        """Return one vector a molecule; `molecule` tells to which each atom belongs."""
        number, features = int(molecule.max()) + 1, nodes.shape[1]
        state = nodes.new_zeros(number, features), nodes.new_zeros(number, features)
        result = nodes.new_zeros(number, 2 * features)
        for _ in range(STEPS):
            state = self.memory(result, state)
            query = state[0]
            scores = (nodes * query[molecule]).sum(dim=1)
            largest = scores.new_zeros(number).scatter_reduce(
                0, molecule, scores.detach(), "amax", include_self=False
            )
            shares = (scores - largest[molecule]).exp()
            totals = shares.new_zeros(number).index_add(0, molecule, shares)
            attention = (shares / totals[molecule])[:, None]
            seen = nodes.new_zeros(number, features).index_add(0, molecule, attention * nodes)
            result = torch.cat([query, seen], dim=1)
        return result


class MoleculeEncoder(nn.Module):
    """From molecules, as `nodes, edges, edge_features, molecule`, to one vector each.

    Parameters
    ----------
    node_features, edge_features : int
        Of the atoms and of the edges that are read.
    features : int
        Of the atoms inside, and of the result.
    """

    def __init__(self, node_features: int, edge_features: int, features: int) -> None:
        super().__init__()
        self.embed = nn.Linear(node_features, features)
        self.messages = EdgeConditioned(features, edge_features, hidden=2 * features)
        self.update = nn.GRUCell(features, features)
        self.readout = SetReadout(features)
        self.project = nn.Linear(2 * features, features)

    def forward(self, molecules: tuple[Tensor, Tensor, Tensor, Tensor]) -> Tensor:
        """Return the representation of every molecule of a batch."""
        atoms, edges, edge_features, molecule = molecules
        nodes = F.relu(self.embed(atoms))
        for _ in range(STEPS):
            nodes = self.update(F.relu(self.messages(nodes, edges, edge_features)), nodes)
        return F.relu(self.project(self.readout(nodes, molecule)))


def message_passing(
    input_shape: Sequence[int], tasks: Sequence[Task], *, features: int = 64, edge_features: int = 5
) -> HardSharing:
    """Build message passing on molecules for all tasks, and a linear decoder for each.

    Parameters
    ----------
    input_shape : sequence of int
        Features of an atom, as one number.
    tasks : sequence of Task
        The tasks, with one label a molecule.
    features : int
        Of the atoms inside the network, and of the shared representation.
    edge_features : int
        Of the edges; QM9 has 5.
    """
    if len(input_shape) != 1:
        raise UsageError(
            f"message_passing reads molecules whose atoms have features (number,), not inputs of shape "
            f"{tuple(input_shape)}."
        )
    encoder = MoleculeEncoder(input_shape[0], edge_features, features)
    return HardSharing(encoder, {task.name: nn.Linear(features, task.out_features) for task in tasks})
