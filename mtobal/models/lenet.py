"""LeNet for two pictures on one canvas."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from mtobal.models.encoders import check_image
from mtobal.models.hard_sharing import HardSharing
from mtobal.tasks import Task

SMALLEST = 20
"""Below so many pixels a side, nothing is left after the two convolutions."""


def lenet(input_shape: Sequence[int], tasks: Sequence[Task], *, features: int = 50) -> HardSharing:
    """Build two convolutions and a linear layer for all tasks, and a linear decoder for each.

    Parameters
    ----------
    input_shape : sequence of int
        Channels, height and width of an image.
    tasks : sequence of Task
        The tasks, with one label an image.
    features : int
        Size of the shared representation.

    References
    ----------
    Lin et al., "Pareto Multi-Task Learning", NeurIPS 2019.
    """
    check_image("lenet", input_shape, SMALLEST)
    in_channels, *sides = input_shape
    height, width = (((side - 8) // 2 - 4) // 2 for side in sides)
    encoder = nn.Sequential(
        *(nn.Conv2d(in_channels, 10, 9), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(10, 20, 5), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(20 * height * width, features), nn.ReLU()),
    )
    return HardSharing(encoder, {task.name: nn.Linear(features, task.out_features) for task in tasks})
