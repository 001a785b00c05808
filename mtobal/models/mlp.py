"""Hard sharing for vectors: one perceptron for all tasks."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from mtobal.models.encoders import MLPEncoder
from mtobal.models.hard_sharing import HardSharing
from mtobal.tasks import Task


def mlp(input_shape: Sequence[int], tasks: Sequence[Task], *, hidden: tuple[int, ...] = (256, 128)) -> HardSharing:
    """Join a perceptron with one linear decoder a task.

    Parameters
    ----------
    input_shape : sequence of int
        The length of a vector.
    tasks : sequence of Task
        The tasks, with one label a vector.
    hidden : tuple of int
        Size of each layer; the last is that of the shared representation.
    """
    encoder = MLPEncoder(input_shape, hidden)
    return HardSharing(encoder, {task.name: nn.Linear(hidden[-1], task.out_features) for task in tasks})
