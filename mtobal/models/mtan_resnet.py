"""The attention network on a ResNet: tasks share its stages, and each chooses what it takes from every one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtobal.models.base import Inputs, MultiTaskModel
from mtobal.models.decoders import DENSE, Decoder, at_size_of, build_decoders
from mtobal.models.hard_sharing import last_layer
from mtobal.models.mtan import Attention
from mtobal.models.resnet import Depth, ResNet, residual_block, resnet_for
from mtobal.tasks import Task


class MTANResNet(MultiTaskModel):
    """A ResNet, and for every task attention masks over its stages.

    A task masks the last features of each stage by what it sees before the last block and what it took from the
    stage above; blocks that all tasks share bring that to the next stage.

    Parameters
    ----------
    trunk : ResNet
        The network that the tasks share.
    decoders : mapping from str to Module
        From the features that a task chose to its output.

    References
    ----------
    Liu, Johns and Davison, "End-to-End Multi-Task Learning with Attention", CVPR 2019.
    """

    def __init__(self, trunk: ResNet, decoders: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.trunk = trunk
        channels = trunk.stage_channels
        self.carry = nn.ModuleList(
            residual_block(trunk.depth, above, below) for above, below in pairwise(channels)
        )
        self.attention = nn.ModuleDict(
            {
                task: nn.ModuleList(
                    Attention(width if level == 0 else 2 * width, width, width // trunk.expansion)
                    for level, width in enumerate(channels)
                )
                for task in decoders
            }
        )
        self.decoders = nn.ModuleDict(dict(decoders))

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(self.decoders)

    def encode(self, inputs: Inputs) -> dict[str, Tensor]:
        """Return the features that each task chose from the last stage."""
        assert isinstance(inputs, Tensor)
        levels = []
        features = self.trunk.stem(inputs)
        for stage in self.trunk.stages:
            before = stage[:-1](features)
            features = stage[-1](before)
            levels.append((before, features))
        return {task: self._attend(task, levels) for task in self.tasks}

    def decode(self, representation: Any, inputs: Inputs) -> dict[str, Tensor]:
        """Return the output of every task; a map is of the input's size."""
        assert isinstance(inputs, Tensor)
        outputs = {task: decoder(representation[task]) for task, decoder in self.decoders.items()}
        return at_size_of(inputs, outputs)

    def task_modules(self, task: str) -> Sequence[nn.Module]:
        return [self.attention[task], self.decoders[task]]

    def last_shared(self) -> nn.Module:
        return last_layer(self.trunk)

    def _attend(self, task: str, levels: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """Return what one task takes from the trunk in the end."""
        taken: list[Tensor] = []
        for level, (before, features) in enumerate(levels):
            mask = self.get_submodule(f"attention.{task}.{level}")
            chosen: Tensor = mask(torch.cat([before, *taken], dim=1)) * features
            if level < len(self.carry):
                carried = self.carry[level](chosen)
                smaller = levels[level + 1][1].shape[-2:] != features.shape[-2:]
                # Rounded up, as a convolution with stride rounds the size of the next stage.
                taken = [F.max_pool2d(carried, 2, ceil_mode=True) if smaller else carried]
        return chosen


def mtan_resnet(
    input_shape: Sequence[int],
    tasks: Sequence[Task],
    *,
    depth: Depth = 50,
    width: int = 64,
    decoder: Decoder = "aspp",
    decoder_channels: int = 256,
    weights: str | None = None,
) -> MTANResNet:
    """Build the attention network on a ResNet with one decoder a task.

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
    trunk = resnet_for(input_shape, depth=depth, width=width, weights=weights, dilated=decoder in DENSE)
    return MTANResNet(trunk, build_decoders(decoder, trunk.out_channels, tasks, decoder_channels))
