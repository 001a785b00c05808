"""Hard parameter sharing: one encoder for all tasks, one decoder for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from mtobal.models.base import Inputs, MultiTaskModel, Representation
from mtobal.models.encoders import ConvEncoder
from mtobal.tasks import Task


class HardSharing(MultiTaskModel):
    """One encoder whose representation every decoder reads.

    Where every task has inputs of its own, they go through the encoder one task after the other, and so do the
    statistics of batch norms. A task that is missing from them is missing from the outputs.

    Parameters
    ----------
    encoder : Module
        From the input to the representation.
    decoders : mapping from str to Module
        From the representation to the output of each task.

    Examples
    --------
    >>> import torch
    >>> model = HardSharing(nn.Linear(4, 8), {"left": nn.Linear(8, 2), "right": nn.Linear(8, 3)})
    >>> {task: output.shape[1] for task, output in model(torch.zeros(5, 4)).items()}
    {'left': 2, 'right': 3}
    """

    def __init__(self, encoder: nn.Module, decoders: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoders = nn.ModuleDict(dict(decoders))

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(self.decoders)

    def encode(self, inputs: Inputs) -> Representation:
        """Return the representation that all decoders read; by task, where inputs are."""
        if isinstance(inputs, dict):
            return {task: self.encoder(inputs[task]) for task in self.tasks if task in inputs}
        representation: Tensor = self.encoder(inputs)
        return representation

    def decode(self, representation: Any, inputs: Inputs) -> dict[str, Tensor]:
        """Return the output of every task that has a representation."""
        if isinstance(representation, dict):
            return {task: self.decoders[task](features) for task, features in representation.items()}
        return {task: decoder(representation) for task, decoder in self.decoders.items()}

    def task_modules(self, task: str) -> Sequence[nn.Module]:
        return [self.decoders[task]]

    def last_shared(self) -> nn.Module:
        return last_layer(self.encoder)


def last_layer(module: nn.Module) -> nn.Module:
    """Return the last part of a module that has parameters of its own."""
    return [part for part in module.modules() if next(part.parameters(recurse=False), None) is not None][-1]


def hard_sharing(
    input_shape: Sequence[int],
    tasks: Sequence[Task],
    *,
    channels: tuple[int, ...] = (16, 32),
    features: int = 64,
) -> HardSharing:
    """Join a convolutional encoder with one linear decoder a task.

    Parameters
    ----------
    input_shape : sequence of int
        Channels, height and width of an image.
    tasks : sequence of Task
        The tasks.
    channels : tuple of int
        Output channels of each convolution of the encoder.
    features : int
        Size of the shared representation.
    """
    # The encoder comes first, so that under one seed it starts from the same weights whatever the tasks are.
    encoder = ConvEncoder(input_shape, channels, features)
    return HardSharing(encoder, {task.name: nn.Linear(features, task.out_features) for task in tasks})
