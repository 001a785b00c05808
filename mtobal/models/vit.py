"""Vision transformers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mtobal.errors import UsageError
from mtobal.models.hard_sharing import HardSharing
from mtobal.tasks import Task


class ViT(nn.Module):
    """A transformer on the patches of an image; the representation is what its class token has gathered.

    Parameters
    ----------
    input_shape : sequence of int
        Channels, height and width of an image; both sides are whole numbers of patches.
    patch : int
        Side of a patch.
    width : int
        Size of a token and of the representation.
    layers : int
        Number of blocks.
    heads : int
        Heads of attention of each block.

    References
    ----------
    Dosovitskiy et al., "An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale", ICLR 2021.

    Examples
    --------
    >>> ViT((3, 32, 48), patch=8, width=16, layers=2, heads=2)(torch.zeros(5, 3, 32, 48)).shape
    torch.Size([5, 16])
    """

    def __init__(self, input_shape: Sequence[int], *, patch: int, width: int, layers: int, heads: int) -> None:
        super().__init__()
        if len(input_shape) != 3 or min(input_shape) < 1 or any(side % patch for side in input_shape[1:]):
            raise UsageError(
                f"ViT reads images (channels, height, width) of whole patches of {patch} pixels, not inputs of "
                f"shape {tuple(input_shape)}; choose another patch."
            )
        if width % heads:
            raise UsageError(f"ViT: width should be a multiple of heads, not {width} with {heads} heads.")
        in_channels, height, image_width = input_shape
        tokens = 1 + (height // patch) * (image_width // patch)
        self.patches = nn.Conv2d(in_channels, width, patch, stride=patch)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.empty(1, tokens, width))
        nn.init.trunc_normal_(self.positions, std=0.02)
        self.blocks = nn.Sequential(
            *(
                nn.TransformerEncoderLayer(
                    width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
                )
                for _ in range(layers)
            )
        )
        self.norm = nn.LayerNorm(width)
        self.out_features = width

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the representation of a batch of images."""
        patches = self.patches(inputs).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_token.expand(len(inputs), -1, -1), patches], dim=1) + self.positions
        representation: Tensor = self.norm(self.blocks(tokens)[:, 0])
        return representation


def vit(
    input_shape: Sequence[int],
    tasks: Sequence[Task],
    *,
    patch: int = 4,
    width: int = 192,
    layers: int = 9,
    heads: int = 3,
) -> HardSharing:
    """Join a vision transformer with one linear decoder a task; the defaults are small, for images as of CIFAR.

    Parameters
    ----------
    input_shape : sequence of int
        Channels, height and width of an image; both sides are whole numbers of patches.
    tasks : sequence of Task
        The tasks, with one label an image.
    patch : int
        Side of a patch; 16 in the paper, for larger images.
    width : int
        Size of a token; 768 in the paper's base model.
    layers : int
        Number of blocks; 12 in the paper's base model.
    heads : int
        Heads of attention of each block; 12 in the paper's base model.
    """
    encoder = ViT(input_shape, patch=patch, width=width, layers=layers, heads=heads)
    return HardSharing(encoder, {task.name: nn.Linear(width, task.out_features) for task in tasks})
