"""The small networks in which CIFAR-100 as 20 tasks was published."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import nn

from mtobal.models.encoders import check_image
from mtobal.models.hard_sharing import HardSharing
from mtobal.tasks import Task

PCGRAD_LEVELS, ROUTING_LEVELS = 3, 4


def cifar_pcgrad(
    input_shape: Sequence[int], tasks: Sequence[Task], *, channels: int = 160, features: int = 320
) -> HardSharing:
    """Build three convolutions and two linear layers for all tasks, and a linear decoder for each.

    Every convolution is followed by a pooling that halves the image; the paper leaves that open.

    Parameters
    ----------
    input_shape : sequence of int
        Channels, height and width of an image.
    tasks : sequence of Task
        The tasks, with one label an image.
    channels : int
        Of every convolution.
    features : int
        Of both linear layers.

    References
    ----------
    Yu et al., "Gradient Surgery for Multi-Task Learning", NeurIPS 2020, appendix J.1.
    """
    convolutions, size = _convolutions(input_shape, channels, PCGRAD_LEVELS, normalised=False)
    linear = [nn.Linear(size, features), nn.ReLU(), nn.Linear(features, features), nn.ReLU()]
    encoder = nn.Sequential(*convolutions, *linear)
    return HardSharing(encoder, {task.name: nn.Linear(features, task.out_features) for task in tasks})


def cifar_routing(
    input_shape: Sequence[int],
    tasks: Sequence[Task],
    *,
    own_layers: Literal["last", "all"] = "all",
    channels: int = 32,
    features: int = 64,
) -> HardSharing:
    """Build the network on which routing was tried: four convolutions and three linear layers, without routing.

    Parameters
    ----------
    input_shape : sequence of int
        Channels, height and width of an image.
    tasks : sequence of Task
        The tasks, with one label an image.
    own_layers : str
        Which of the linear layers each task has for itself: the "last" or "all".
    channels : int
        Of every convolution.
    features : int
        Of the first two linear layers.

    References
    ----------
    Rosenbaum, Klinger and Riemer, "Routing Networks", ICLR 2018.
    """
    convolutions, size = _convolutions(input_shape, channels, ROUTING_LEVELS, normalised=True)

    def hidden() -> list[nn.Module]:
        return [nn.Linear(size, features), nn.ReLU(), nn.Linear(features, features), nn.ReLU()]

    own = own_layers == "all"
    encoder = nn.Sequential(*convolutions, *([] if own else hidden()))
    return HardSharing(
        encoder,
        {
            task.name: nn.Sequential(*(hidden() if own else []), nn.Linear(features, task.out_features))
            for task in tasks
        },
    )


def _convolutions(
    input_shape: Sequence[int], channels: int, levels: int, normalised: bool
) -> tuple[list[nn.Module], int]:
    """Return convolutions that each halve the image, flattened in the end, and how many features they give."""
    check_image("a network of CIFAR", input_shape, 2**levels)
    in_channels, height, width = input_shape
    layers: list[nn.Module] = []
    for _ in range(levels):
        layers += [nn.Conv2d(in_channels, channels, 3, padding=1)]
        layers += [nn.BatchNorm2d(channels)] * normalised
        layers += [nn.ReLU(), nn.MaxPool2d(2)]
        in_channels = channels
    return [*layers, nn.Flatten()], channels * (height >> levels) * (width >> levels)
