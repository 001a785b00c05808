"""DeepLab: a dilated ResNet for all tasks, and for each a decoder that looks at several scales."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor

from mtobal.models.base import Inputs
from mtobal.models.decoders import at_size_of, build_decoders
from mtobal.models.hard_sharing import HardSharing
from mtobal.models.resnet import Depth, resnet_for
from mtobal.tasks import Task


class DeepLab(HardSharing):
    """Hard sharing whose outputs are brought to the size of the input."""

    def decode(self, representation: Any, inputs: Inputs) -> dict[str, Tensor]:
        """Return a map of the input's size for every task."""
        assert isinstance(inputs, Tensor)
        return at_size_of(inputs, super().decode(representation, inputs))


def deeplab(
    input_shape: Sequence[int],
    tasks: Sequence[Task],
    *,
    depth: Depth = 50,
    width: int = 64,
    decoder: Literal["aspp", "pixel_shuffle"] = "aspp",
    decoder_channels: int = 256,
    weights: str | None = None,
) -> DeepLab:
    """Join a dilated ResNet with one dense decoder a task.

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
    decoder : {"aspp", "pixel_shuffle"}
        The pyramid of the paper, or the cheaper sub-pixel convolution.
    decoder_channels : int
        Channels inside a decoder, in the pyramid those of each scale; 256 in the paper.
    weights : str, optional
        File with pretrained weights of the ResNet under torchvision's names.

    References
    ----------
    Chen et al., "Rethinking Atrous Convolution for Semantic Image Segmentation", 2017.
    """
    encoder = resnet_for(input_shape, depth=depth, width=width, weights=weights, dilated=True)
    return DeepLab(encoder, build_decoders(decoder, encoder.out_channels, tasks, decoder_channels))
