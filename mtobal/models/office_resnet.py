"""The network in which Office-31 and Office-Home are compared."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from mtobal.models.hard_sharing import HardSharing
from mtobal.models.resnet import Depth, resnet_for
from mtobal.tasks import Task


def office_resnet(
    input_shape: Sequence[int],
    tasks: Sequence[Task],
    *,
    depth: Depth = 18,
    width: int = 64,
    features: int = 512,
    weights: str | None = None,
) -> HardSharing:
    """Build a ResNet and a linear layer with dropout for all tasks, and a linear decoder for each.

    Parameters
    ----------
    input_shape : sequence of int
        Channels, height and width of an image.
    tasks : sequence of Task
        The tasks, with one label an image.
    depth : int
        18, 34, 50 or 101 layers.
    width : int
        Channels of the first stage's blocks; 64 in the paper.
    features : int
        Size of the shared representation.
    weights : str, optional
        File with pretrained weights of the ResNet under torchvision's names.

    References
    ----------
    Lin and Zhang, "LibMTL: A Python Library for Deep Multi-Task Learning", JMLR 2023.
    """
    trunk = resnet_for(input_shape, depth=depth, width=width, weights=weights)
    linear = nn.Linear(trunk.out_channels, features)
    nn.init.normal_(linear.weight, std=0.005)
    nn.init.constant_(linear.bias, 0.1)
    pooled = nn.Sequential(trunk, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    encoder = nn.Sequential(*pooled, linear, nn.BatchNorm1d(features), nn.ReLU(), nn.Dropout(0.5))
    return HardSharing(encoder, {task.name: nn.Linear(features, task.out_features) for task in tasks})
