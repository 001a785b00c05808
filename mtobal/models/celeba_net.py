"""The network in which strategies are compared on CelebA."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from mtobal.models.encoders import check_image
from mtobal.models.hard_sharing import HardSharing
from mtobal.tasks import Task

SMALLEST = 8
"""Below so many pixels a side, nothing is left after the three poolings."""


def celeba_net(input_shape: Sequence[int], tasks: Sequence[Task], *, width: int = 64) -> HardSharing:
    """Build seven convolutions and two linear layers for all tasks, and a linear decoder for each.

    Parameters
    ----------
    input_shape : sequence of int
        Channels, height and width of an image.
    tasks : sequence of Task
        The tasks, with one label an image, or several.
    width : int
        Channels of the first convolution; 64 in the paper. The last ones have eight times as many.

    References
    ----------
    Liu et al., "FAMO: Fast Adaptive Multitask Optimization", NeurIPS 2023.
    """
    check_image("celeba_net", input_shape, SMALLEST)
    features = 8 * width
    layers: list[nn.Module] = []
    in_channels = input_shape[0]
    for channels, repeated in ((width, 1), (2 * width, 2), (4 * width, 2), (features, 2)):
        layers += [nn.MaxPool2d(2)] if layers else []
        for _ in range(repeated):
            convolution = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
            layers += [convolution, nn.BatchNorm2d(channels), nn.ReLU()]
            in_channels = channels
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    for _ in range(2):
        layers += [nn.Linear(features, features, bias=False), nn.BatchNorm1d(features), nn.ReLU()]
    decoders = {task.name: nn.Linear(features, task.out_features) for task in tasks}
    return HardSharing(nn.Sequential(*layers), decoders)
