"""One network a task, and what they exchange at each stage."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from mtobal.models.base import Inputs, MultiTaskModel
from mtobal.models.decoders import DENSE, Decoder, at_size_of, build_decoders
from mtobal.models.resnet import Depth, ResNet, resnet_for
from mtobal.tasks import Task

_Model = TypeVar("_Model", bound="ParallelResNets")


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

    @classmethod
    def build(
        cls: type[_Model],
        input_shape: Sequence[int],
        tasks: Sequence[Task],
        *,
        depth: Depth = 50,
        width: int = 64,
        decoder: Decoder = "aspp",
        decoder_channels: int = 256,
        weights: str | None = None,
    ) -> _Model:
        """Build one ResNet and one decoder a task.

        Parameters
        ----------
        input_shape : sequence of int
            Channels, height and width of an image.
        tasks : sequence of Task
            The tasks.
        depth : int
            18, 34, 50 or 101 layers.
        width : int
            Channels of the first stage of a ResNet; 64 in the paper.
        decoder : {"aspp", "pixel_shuffle", "linear", "mlp"}
            The first two for dense tasks, on dilated ResNets; the others for tasks with one label an image.
        decoder_channels : int
            Channels inside a decoder.
        weights : str, optional
            File with pretrained weights of a ResNet under torchvision's names.
        """
        trunks = {
            task.name: resnet_for(input_shape, depth=depth, width=width, weights=weights, dilated=decoder in DENSE)
            for task in tasks
        }
        channels = trunks[tasks[0].name].out_channels
        return cls(trunks, build_decoders(decoder, channels, tasks, decoder_channels))

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


def own_and_others(tasks: int) -> Tensor:
    """Return the first weights of an exchange: nine tenths on the task's own, one tenth on all others together."""
    if tasks == 1:
        return torch.ones(1, 1)
    others = 0.1 / (tasks - 1)
    return torch.full((tasks, tasks), others) + (0.9 - others) * torch.eye(tasks)
