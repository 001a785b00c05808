"""Task-specific bottom representations: every task reads sequences and weighs features in its own way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtobal.errors import UsageError
from mtobal.models.experts import TaskFeatures
from mtobal.models.hard_sharing import HardSharing, last_layer
from mtobal.tasks import Task

_NORMS = 2  # a layer of the transformer


class TransformerLayer(nn.Module):
    """Attention and a perceptron, each with a LayerNorm behind it whose scale and shift are given."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.perceptron = nn.Sequential(nn.Linear(width, 4 * width), nn.ReLU(), nn.Linear(4 * width, width))

    def forward(self, items: Tensor, scales: Sequence[Tensor], shifts: Sequence[Tensor]) -> Tensor:
        """Return the items (N, length, width); scales and shifts (N, 1, width) are those of the two norms."""
        # With weights, because the fused attention has no second derivative.
        attended, _ = self.attention(items, items, items, need_weights=True)
        items = _norm(items + attended) * scales[0] + shifts[0]
        changed: Tensor = _norm(items + self.perceptron(items)) * scales[1] + shifts[1]
        return changed


def _norm(items: Tensor) -> Tensor:
    normed: Tensor = F.layer_norm(items, items.shape[-1:])
    return normed


class TaskBottom(nn.Module):
    """What one task has below its tower: an embedding of itself, and a weight of each feature field."""

    def __init__(self, embedding: int, fields: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.randn(embedding))
        hidden = max(fields * width // 4, 1)
        self.weigh = nn.Sequential(
            nn.Linear(fields * width, hidden), nn.ReLU(), nn.Linear(hidden, fields), nn.Sigmoid()
        )

    def forward(self, fields: Tensor) -> Tensor:
        """Return the weighted fields (N, fields, width) as one vector."""
        weighted: Tensor = fields * self.weigh(fields.flatten(1)).unsqueeze(2)
        return weighted.flatten(1)


class DTRN(TaskFeatures):
    """A transformer over sequences whose norms depend on the task, and for each task weights of what comes out.

    Parameters
    ----------
    input_shape : sequence of int
        Sequences, their length, and features of an item.
    out_features : mapping from str to int
        Outputs of each task.
    width : int
        Size of an item inside.
    layers, heads : int
        Of the transformer.
    embedding : int
        Size of the embeddings of tasks and sequences.
    tower : int
        Hidden units of each tower.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        out_features: Mapping[str, int],
        *,
        width: int,
        layers: int,
        heads: int,
        embedding: int,
        tower: int,
    ) -> None:
        super().__init__()
        behaviours, length, in_features = input_shape
        # What all tasks share comes first, so that it starts alike under one seed.
        self.items = nn.Linear(in_features, width)
        self.positions = nn.Parameter(0.02 * torch.randn(length, width))
        self.behaviours = nn.Parameter(torch.randn(behaviours, embedding))
        self.hypernetwork = nn.Linear(2 * embedding, 2 * _NORMS * layers * width)
        self.layers = nn.ModuleList(TransformerLayer(width, heads) for _ in range(layers))
        fields = 2 * behaviours
        self.bottoms = nn.ModuleDict({task: TaskBottom(embedding, fields, width) for task in out_features})
        towers = {
            task: nn.Sequential(nn.Linear(fields * width, tower), nn.ReLU(), nn.Linear(tower, size))
            for task, size in out_features.items()
        }
        self.tail = HardSharing(nn.Identity(), towers)

    def features(self, inputs: Tensor, tasks: Sequence[str]) -> dict[str, Tensor]:
        sequences = inputs if inputs.ndim == 4 else inputs.unsqueeze(1)
        items = self.items(sequences)
        plain = items.mean(dim=2)
        features = {}
        for task in tasks:
            bottom = self.bottoms[task]
            assert isinstance(bottom, TaskBottom)
            interests = self._interests(items + self.positions, bottom.embedding)
            features[task] = bottom(torch.cat([plain, interests], dim=1))
        return features

    def task_modules(self, task: str) -> Sequence[nn.Module]:
        return [self.bottoms[task], self.tail.decoders[task]]

    def last_shared(self) -> nn.Module:
        return last_layer(self.layers)

    def _interests(self, items: Tensor, task: Tensor) -> Tensor:
        """Return what a task takes from each sequence (N, sequences, width)."""
        samples, behaviours, _, width = items.shape
        pairs = torch.cat([task.expand(behaviours, -1), self.behaviours], dim=1)
        # By layer and norm, the change of the scale and the shift; the same for every sample.
        given = (
            self.hypernetwork(pairs).reshape(behaviours, -1, _NORMS, 2, 1, width).repeat(samples, 1, 1, 1, 1, 1)
        )
        states = items.flatten(0, 1)
        for number, layer in enumerate(self.layers):
            changes, shifts = given[:, number].unbind(2)
            states = layer(states, (1 + changes).unbind(1), shifts.unbind(1))
        return states.mean(dim=1).reshape(samples, behaviours, width)


def dtrn(
    input_shape: Sequence[int],
    tasks: Sequence[Task],
    *,
    width: int = 32,
    layers: int = 1,
    heads: int = 2,
    embedding: int = 8,
    tower: int = 64,
) -> DTRN:
    """Build a network with task-specific bottom representations.

    Each sequence b is read for each task t by one transformer whose norms are ``(1 + gamma) LN(x) + beta`` with
    ``(gamma, beta) = H [e_t; e_b]``, and averaged to u_tb. With f_b, the average of the items as they came, the
    fields are ``z = [f_1 .. f_B, u_t1 .. u_tB]``, and the tower of the task reads ``z * sigmoid(MLP_t(z))``, one
    weight a field.

    The model reads sequences of vectors: (length, features), or several kinds of them a sample: (kinds, length,
    features). An image is read as one sequence of rows a channel.

    Parameters
    ----------
    input_shape : sequence of int
        Shape of an input.
    tasks : sequence of Task
        The tasks, with one label a sample.
    width : int
        Size of an item inside.
    layers, heads : int
        Of the transformer.
    embedding : int
        Size of the embeddings of tasks and sequences.
    tower : int
        Hidden units of each tower.

    References
    ----------
    Liu et al., "Deep Task-specific Bottom Representation Network for Multi-Task Recommendation", CIKM 2023. The
    defaults are small; identities of items are vectors here, not indices into a table.
    """
    if len(input_shape) not in (2, 3) or min(input_shape) < 1:
        raise UsageError(
            "dtrn reads sequences (length, features) or (kinds, length, features), "
            f"not inputs of shape {tuple(input_shape)}."
        )
    if width % heads:
        raise UsageError(f"dtrn: width should be a multiple of heads, not {width} for {heads}.")
    return DTRN(
        (1, *input_shape)[-3:],
        {task.name: task.out_features for task in tasks},
        width=width,
        layers=layers,
        heads=heads,
        embedding=embedding,
        tower=tower,
    )
