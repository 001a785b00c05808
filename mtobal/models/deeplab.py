"""DeepLab: a dilated ResNet for all tasks, and for each a decoder that looks at several scales."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtobal.errors import UsageError
from mtobal.models.base import Inputs
from mtobal.models.hard_sharing import HardSharing
from mtobal.models.resnet import Depth, ResNet
from mtobal.tasks import Task

DILATIONS = (12, 24, 36)


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: the same features at several scales, and a small head on all of them.

    Parameters
    ----------
    in_channels : int
        Channels of the features.
    out_channels : int
        Channels of the output.
    channels : int
        Channels of each scale; 256 in the paper.
    """

    def __init__(self, in_channels: int, out_channels: int, channels: int = 256) -> None:
        super().__init__()
        self.scales = nn.ModuleList(
            [
                _conv_bn_relu(in_channels, channels, 1),
                *(_conv_bn_relu(in_channels, channels, 3, dilation) for dilation in DILATIONS),
            ]
        )
        self.whole = nn.Sequential(nn.AdaptiveAvgPool2d(1), _conv_bn_relu(in_channels, channels, 1))
        self.project = nn.Sequential(_conv_bn_relu((len(DILATIONS) + 2) * channels, channels, 1), nn.Dropout(0.5))
        self.head = nn.Sequential(_conv_bn_relu(channels, channels, 3), nn.Conv2d(channels, out_channels, 1))

    def forward(self, features: Tensor) -> Tensor:
        """Return the output at the resolution of the features."""
        if self.training and len(features) == 1:
            raise UsageError(
                "DeepLab trains on batches of two images or more: its features of the whole image are normalised "
                "over the batch, and this batch has one; choose another batch_size."
            )
        whole = self.whole(features).expand(-1, -1, *features.shape[-2:])
        scales = [scale(features) for scale in self.scales]
        output: Tensor = self.head(self.project(torch.cat([*scales, whole], dim=1)))
        return output


def _conv_bn_relu(in_channels: int, out_channels: int, size: int, dilation: int = 1) -> nn.Sequential:
    padding = dilation * (size // 2)
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, size, padding=padding, dilation=dilation, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
    )


class DeepLab(HardSharing):
    """Hard sharing whose outputs are brought to the size of the input."""

    def decode(self, representation: Any, inputs: Inputs) -> dict[str, Tensor]:
        """Return a map of the input's size for every task."""
        assert isinstance(inputs, Tensor)
        return {
            task: F.interpolate(output, inputs.shape[-2:], mode="bilinear", align_corners=True)
            for task, output in super().decode(representation, inputs).items()
        }


def deeplab(
    input_shape: Sequence[int],
    tasks: Sequence[Task],
    *,
    depth: Depth = 50,
    width: int = 64,
    decoder_channels: int = 256,
    weights: str | None = None,
) -> DeepLab:
    """Join a dilated ResNet with one pyramid decoder a task.

    Parameters
    ----------
    input_shape : sequence of int
        Channels, height and width of an image.
    tasks : sequence of Task
        Dense tasks.
    depth : int
        18, 34, 50 or 101 layers.
    width : int
        Channels of the ResNet's first stage; 64 in the paper.
    decoder_channels : int
        Channels of each scale of a decoder; 256 in the paper.
    weights : str, optional
        File with pretrained weights of the ResNet under torchvision's names.

    References
    ----------
    Chen et al., "Rethinking Atrous Convolution for Semantic Image Segmentation", 2017.
    """
    encoder = ResNet(input_shape[0], depth=depth, width=width, dilated=True)
    if weights is not None:
        encoder.load_weights(weights)
    decoders = {task.name: ASPP(encoder.out_channels, task.out_features, decoder_channels) for task in tasks}
    return DeepLab(encoder, decoders)
