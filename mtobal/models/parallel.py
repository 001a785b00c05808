"""One network a task, and what they exchange at each stage."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mtobal.models.base import Inputs, MultiTaskModel
from mtobal.models.decoders import DENSE, Decoder, at_size_of
from mtobal.models.resnet import Depth, ResNet
from mtobal.tasks import Task


class ParallelResNets(MultiTaskModel):
    """A ResNet and a decoder of each task; a subclass says what the ResNets exchange.

    Parameters
    ----------
    trunks : mapping from str to ResNet
        The network of each task; all of one shape.
    decoders : mapping from str to Module
        From the features of a task to its output.
    """

    def __init__(self, trunks: Mapping[str, ResNet], decoders: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.trunks = nn.ModuleDict(dict(trunks))
        self.decoders = nn.ModuleDict(dict(decoders))

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(self.decoders)

    @abstractmethod
    def exchange(self, level: int, features: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return what each network goes on with, given the features of all behind the stem (0) or a stage."""

    def encode(self, inputs: Inputs) -> dict[str, Tensor]:
        """Return the features of each task."""
        assert isinstance(inputs, Tensor)
        features = self.exchange(0, [trunk.stem(inputs) for trunk in self._resnets()])
        for level, stages in enumerate(zip(*(trunk.stages for trunk in self._resnets()), strict=True), start=1):
            features = self.exchange(level, [stage(one) for stage, one in zip(stages, features, strict=True)])
        return dict(zip(self.tasks, features, strict=True))

    def decode(self, representation: Any, inputs: Inputs) -> dict[str, Tensor]:
        """Return the output of every task; a map is of the input's size."""
        assert isinstance(inputs, Tensor)
        outputs = {task: decoder(representation[task]) for task, decoder in self.decoders.items()}
        return at_size_of(inputs, outputs)

    def _resnets(self) -> Iterable[ResNet]:
        for trunk in self.trunks.values():
            assert isinstance(trunk, ResNet)
            yield trunk


def build_trunks(
    in_channels: int, tasks: Sequence[Task], *, depth: Depth, width: int, decoder: Decoder, weights: str | None
) -> dict[str, ResNet]:
    """Build the ResNet of each task: a dilated one where its decoder gives maps."""
    trunks = {task.name: ResNet(in_channels, depth=depth, width=width, dilated=decoder in DENSE) for task in tasks}
    if weights is not None:
        for trunk in trunks.values():
            trunk.load_weights(weights)
    return trunks


def own_and_others(tasks: int) -> Tensor:
    """Return the first weights of an exchange: nine tenths on the task's own, one tenth on all others together."""
    if tasks == 1:
        return torch.ones(1, 1)
    others = 0.1 / (tasks - 1)
    return torch.full((tasks, tasks), others) + (0.9 - others) * torch.eye(tasks)
