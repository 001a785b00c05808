"""Encoders: from an input to the representation that the tasks share."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from mtobal.errors import UsageError


def check_image(reader: str, input_shape: Sequence[int], smallest: int = 1) -> None:
    """Refuse inputs that are no images, or too small ones."""
    if len(input_shape) != 3 or min(input_shape) < 1 or min(input_shape[1:]) < smallest:
        least = f" of at least {smallest} pixels a side" if smallest > 1 else ""
        raise UsageError(
            f"{reader} reads images (channels, height, width){least}, not inputs of shape {tuple(input_shape)}."
        )


class ConvEncoder(nn.Module):
    """Convolutions that each halve the image, and a linear layer to the features.

    Parameters
    ----------
    input_shape : sequence of int
        Channels, height and width of an image.
    channels : sequence of int
        Output channels of each convolution.
    out_features : int
        Size of the representation.

    Examples
    --------
    >>> import torch
    >>> encoder = ConvEncoder((1, 12, 12), channels=(8, 16), out_features=32)
    >>> encoder(torch.zeros(5, 1, 12, 12)).shape
    torch.Size([5, 32])
    """

    def __init__(self, input_shape: Sequence[int], channels: Sequence[int], out_features: int) -> None:
        super().__init__()
        check_image("ConvEncoder", input_shape)
        in_channels, height, width = input_shape
        layers: list[nn.Module] = []
        for out_channels in channels:
            # A stride costs a quarter of a pooling after a convolution at full size.
            layers += [nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1), nn.ReLU()]
            in_channels, height, width = out_channels, (height + 1) // 2, (width + 1) // 2
        layers += [nn.Flatten(), nn.Linear(in_channels * height * width, out_features), nn.ReLU()]
        self.layers = nn.Sequential(*layers)
        self.out_features = out_features

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the representation of a batch of images."""
        features: Tensor = self.layers(inputs)
        return features


class MLPEncoder(nn.Module):
    """Linear layers with a ReLU after each.

    Parameters
    ----------
    input_shape : sequence of int
        The length of a vector.
    hidden : sequence of int
        Size of each layer; the last is that of the representation.

    Examples
    --------
    >>> import torch
    >>> MLPEncoder((8,), hidden=(32, 16))(torch.zeros(5, 8)).shape
    torch.Size([5, 16])
    """

    def __init__(self, input_shape: Sequence[int], hidden: Sequence[int]) -> None:
        super().__init__()
        if len(input_shape) != 1:
            raise UsageError(f"MLPEncoder reads vectors (length,), not inputs of shape {tuple(input_shape)}.")
        if not hidden or min(hidden) < 1:
            raise UsageError(f"MLPEncoder: hidden should be sizes from 1, one a layer, not {list(hidden)}.")
        sizes = (*input_shape, *hidden)
        layers: list[nn.Module] = []
        for in_features, out_features in zip(sizes, hidden, strict=False):
            layers += [nn.Linear(in_features, out_features), nn.ReLU()]
        self.layers = nn.Sequential(*layers)
        self.out_features = hidden[-1]

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the representation of a batch of vectors."""
        features: Tensor = self.layers(inputs)
        return features
