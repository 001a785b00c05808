"""Decoders: from feature maps that the tasks share, or that one task has of its own, to the output of a task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtobal.errors import UsageError
from mtobal.tasks import Task

Decoder = Literal["aspp", "pixel_shuffle", "linear", "mlp"]
"""A map from several scales or by reordering channels; one output an image without or with a hidden layer."""

DENSE = ("aspp", "pixel_shuffle")
"""Those that give maps."""

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

    References
    ----------
    Chen et al., "Rethinking Atrous Convolution for Semantic Image Segmentation", 2017.
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


class PixelShuffle(nn.Sequential):
    """Sub-pixel convolution: each pixel of the features gives a square of pixels of the output.

    Parameters
    ----------
    in_channels : int
        Channels of the features.
    out_channels : int
        Channels of the output.
    channels : int
        Channels between the two convolutions.
    scale : int
        Side of the square: how often smaller the features are than the image.

    References
    ----------
    Shi et al., "Real-Time Single Image and Video Super-Resolution Using an Efficient Sub-Pixel Convolutional
    Neural Network", CVPR 2016.

    Examples
    --------
    >>> PixelShuffle(16, 3, channels=8, scale=8)(torch.zeros(2, 16, 4, 6)).shape
    torch.Size([2, 3, 32, 48])
    """

    def __init__(self, in_channels: int, out_channels: int, channels: int = 256, scale: int = 8) -> None:
        super().__init__(
            _conv_bn_relu(in_channels, channels, 3),
            nn.Conv2d(channels, out_channels * scale**2, 3, padding=1),
            nn.PixelShuffle(scale),
        )


class PooledLinear(nn.Sequential):
    """One linear layer on the features, averaged over the image."""

    def __init__(self, in_channels: int, out_features: int) -> None:
        super().__init__(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(in_channels, out_features))


class PooledMLP(nn.Sequential):
    """A hidden layer, and one to the outputs, on the features, averaged over the image."""

    def __init__(self, in_channels: int, out_features: int, hidden: int) -> None:
        super().__init__(
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(in_channels, hidden),
            nn.ReLU(),
            nn.Linear(hidden, out_features),
        )


def build_decoders(kind: Decoder, in_channels: int, tasks: Sequence[Task], channels: int) -> dict[str, nn.Module]:
    """Build the decoder of each task on feature maps of an eighth of the image's size.

    Parameters
    ----------
    kind : {"aspp", "pixel_shuffle", "linear", "mlp"}
        The first two for dense tasks, the others for tasks with one label an image.
    in_channels : int
        Channels of the feature maps.
    tasks : sequence of Task
        The tasks.
    channels : int
        Channels inside a decoder.
    """

    def build(out_features: int) -> nn.Module:
        if kind == "linear":
            return PooledLinear(in_channels, out_features)
        if kind == "mlp":
            return PooledMLP(in_channels, out_features, channels)
        return (ASPP if kind == "aspp" else PixelShuffle)(in_channels, out_features, channels)

    return {task.name: build(task.out_features) for task in tasks}


def at_size_of(images: Tensor, outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Bring maps to the size of the images; an output that is no map stays what it is."""
    return {
        task: F.interpolate(output, images.shape[-2:], mode="bilinear", align_corners=True)
        if output.ndim == 4 and output.shape[-2:] != images.shape[-2:]
        else output
        for task, output in outputs.items()
    }
