"""SegNet: an encoder that pools, and a decoder that puts every maximum back where it was."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Size, Tensor, nn
from torch.nn import functional as F

from mtobal.errors import UsageError
from mtobal.models.encoders import check_image
from mtobal.models.hard_sharing import HardSharing
from mtobal.tasks import Task

FILTERS = (64, 128, 256, 512, 512)
"""Channels of the levels, from the image down."""

Places = tuple[Tensor, Size]
"""Where the maxima of a pooling were, and the size of what was pooled."""


def conv_bn_relu(in_channels: int, out_channels: int) -> nn.Sequential:
    """Build the unit of which SegNet is made."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, padding=1), nn.BatchNorm2d(out_channels), nn.ReLU()
    )


def initialise(module: nn.Module) -> None:
    """Draw the weights of all convolutions by Xavier's rule; biases are zero."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.xavier_normal_(part.weight)
            if part.bias is not None:
                nn.init.zeros_(part.bias)


class SegNet(nn.Module):
    """The network up to its last features, which have the size of the image.

    Each level of the encoder changes the number of channels, refines, and halves the image; each level of the
    decoder undoes the pooling of its counterpart, changes the number of channels, and refines.

    Parameters
    ----------
    in_channels : int
        Channels of an image.
    filters : sequence of int
        Channels of the levels, from the image down.

    References
    ----------
    Badrinarayanan, Kendall and Cipolla, "SegNet", TPAMI 2017; in this form by Liu, Johns and Davison, "End-to-End
    Multi-Task Learning with Attention", CVPR 2019.

    Examples
    --------
    >>> import torch
    >>> SegNet(filters=(4, 8, 8, 8, 8))(torch.zeros(1, 3, 72, 96)).shape
    torch.Size([1, 4, 72, 96])
    """

    def __init__(self, in_channels: int = 3, filters: Sequence[int] = FILTERS) -> None:
        super().__init__()
        if not filters or min(filters) < 1:
            raise UsageError(
                f"SegNet: filters should be channels from 1, one number a level, not {list(filters)}."
            )
        self.out_channels = filters[0]
        above = (in_channels, *filters)
        below = (filters[0], *filters)
        self.encoder = nn.ModuleList(conv_bn_relu(above[k], filters[k]) for k in range(len(filters)))
        self.encoder_refine = nn.ModuleList(_refine(k, filters[k]) for k in range(len(filters)))
        self.decoder = nn.ModuleList(conv_bn_relu(filters[k], below[k]) for k in range(len(filters)))
        self.decoder_refine = nn.ModuleList(_refine(k, below[k]) for k in range(len(filters)))
        initialise(self)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the last features of a batch of images."""
        features = inputs
        places: list[Places] = []
        for change, refine in zip(self.encoder, self.encoder_refine, strict=True):
            features = refine(change(features))
            size = features.shape[-2:]
            features, indices = F.max_pool2d(features, 2, return_indices=True)
            places.append((indices, size))
        for change, refine in zip(reversed(self.decoder), reversed(self.decoder_refine), strict=True):
            features = refine(change(unpool(features, places.pop())))
        return features


def unpool(features: Tensor, places: Places) -> Tensor:
    """Put every value back where its maximum was; zeros are everywhere else."""
    indices, (height, width) = places
    return F.max_unpool2d(features, indices, (2, 2), output_size=(height, width))


def _refine(level: int, channels: int) -> nn.Sequential:
    return nn.Sequential(*(conv_bn_relu(channels, channels) for _ in range(1 if level < 2 else 2)))


class SegNetHead(nn.Sequential):
    """Two convolutions, with nothing between them, to the output of a task."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__(nn.Conv2d(channels, channels, 3, padding=1), nn.Conv2d(channels, out_channels, 1))
        initialise(self)


def segnet(
    input_shape: Sequence[int], tasks: Sequence[Task], *, filters: tuple[int, ...] = FILTERS
) -> HardSharing:
    """Join a SegNet with one small head a task.

    Parameters
    ----------
    input_shape : sequence of int
        Channels, height and width of an image.
    tasks : sequence of Task
        Dense tasks.
    filters : tuple of int
        Channels of the levels, from the image down; as many halvings have to fit into the image.
    """
    check_image(f"SegNet with {len(filters)} levels", input_shape, 2 ** len(filters))
    trunk = SegNet(input_shape[0], filters)
    return HardSharing(trunk, {task.name: SegNetHead(filters[0], task.out_features) for task in tasks})
