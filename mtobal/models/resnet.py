"""Residual networks, with the names of torchvision's weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from torch import Tensor, nn

from mtobal.errors import UsageError
from mtobal.models.encoders import check_image
from mtobal.models.hard_sharing import HardSharing
from mtobal.models.tensor_files import load_tensors
from mtobal.tasks import Task

Depth = Literal[18, 34, 50, 101]

_BLOCKS: dict[Depth, tuple[int, int, int, int]] = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
}


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside the identity; the first may have a stride, and a dilation of its own."""

    expansion = 1

    def __init__(self, in_channels: int, channels: int, stride: int, dilations: tuple[int, int]) -> None:
        super().__init__()
        first, second = dilations
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, first, first, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, second, second, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()
        self.downsample = _downsample(in_channels, channels, stride)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return features of the next block's input."""
        features = self.relu(self.bn1(self.conv1(inputs)))
        features = self.bn2(self.conv2(features)) + self.downsample(inputs)
        result: Tensor = self.relu(features)
        return result


class Bottleneck(nn.Module):
    """A 3x3 convolution between two 1x1 ones that narrow and widen, beside the identity."""

    expansion = 4

    def __init__(self, in_channels: int, channels: int, stride: int, dilations: tuple[int, int]) -> None:
        super().__init__()
        dilation, _ = dilations
        out_channels = channels * self.expansion
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, dilation, dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU()
        self.downsample = _downsample(in_channels, out_channels, stride)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return features of the next block's input."""
        features = self.relu(self.bn1(self.conv1(inputs)))
        features = self.relu(self.bn2(self.conv2(features)))
        features = self.bn3(self.conv3(features)) + self.downsample(inputs)
        result: Tensor = self.relu(features)
        return result


def residual_block(depth: Depth, in_channels: int, out_channels: int) -> BasicBlock | Bottleneck:
    """Build a block as in a ResNet of this depth, between any two numbers of channels."""
    block = _block(depth)
    return block(in_channels, out_channels // block.expansion, 1, (1, 1))


def _block(depth: Depth) -> type[BasicBlock] | type[Bottleneck]:
    return BasicBlock if depth < 50 else Bottleneck


def _downsample(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels))


class ResNet(nn.Module):
    """The convolutions of a ResNet, without its pooling and classifier.

    Parameters
    ----------
    in_channels : int
        Channels of an image.
    depth : int
        18, 34, 50 or 101 layers.
    width : int
        Channels of the first stage's blocks; 64 in the paper.
    dilated : bool
        Keep an eighth of the resolution: the last two stages dilate instead of halving the image.
    small_stem : bool
        A 3x3 convolution in place of the 7x7 one with stride and pooling, for images such as CIFAR's.

    References
    ----------
    He et al., "Deep Residual Learning for Image Recognition", CVPR 2016; Chen et al., "Rethinking Atrous
    Convolution for Semantic Image Segmentation", 2017 (dilation).

    Examples
    --------
    >>> import torch
    >>> encoder = ResNet(depth=18, width=8, dilated=True)
    >>> encoder(torch.zeros(1, 3, 64, 96)).shape
    torch.Size([1, 64, 8, 12])
    """

    def __init__(
        self,
        in_channels: int = 3,
        *,
        depth: Depth = 18,
        width: int = 64,
        dilated: bool = False,
        small_stem: bool = False,
    ) -> None:
        super().__init__()
        block = _block(depth)
        self.depth = depth
        self.expansion = block.expansion
        self.conv1 = (
            nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
            if small_stem
            else nn.Conv2d(in_channels, width, 7, stride=2, padding=3, bias=False)
        )
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.maxpool = nn.Identity() if small_stem else nn.MaxPool2d(3, stride=2, padding=1)
        self.out_channels = width
        self.stage_channels = tuple(width * 2**number * block.expansion for number in range(4))

        def stage(number: int, stride: int, dilations: tuple[int, int]) -> nn.Sequential:
            # Where a stride was, the filters still look at neighbours; behind it, at every second pixel.
            channels, (_, rest) = width * 2**number, dilations
            blocks: list[nn.Module] = [block(self.out_channels, channels, stride, dilations)]
            self.out_channels = channels * block.expansion
            further = _BLOCKS[depth][number] - 1
            blocks += [block(self.out_channels, channels, 1, (rest, rest)) for _ in range(further)]
            return nn.Sequential(*blocks)

        self.layer1 = stage(0, 1, (1, 1))
        self.layer2 = stage(1, 2, (1, 1))
        self.layer3 = stage(2, 1, (1, 2)) if dilated else stage(2, 2, (1, 1))
        self.layer4 = stage(3, 1, (2, 4)) if dilated else stage(3, 2, (1, 1))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the feature maps of a batch of images."""
        features = self.stem(inputs)
        for stage in self.stages:
            features = stage(features)
        return features

    def stem(self, inputs: Tensor) -> Tensor:
        """Return what the first stage reads."""
        features: Tensor = self.maxpool(self.relu(self.bn1(self.conv1(inputs))))
        return features

    @property
    def stages(self) -> tuple[nn.Sequential, ...]:
        """The four stages, each a sequence of blocks."""
        return self.layer1, self.layer2, self.layer3, self.layer4

    def load_weights(self, path: str | Path) -> None:
        """Load weights that were saved under torchvision's names, such as those trained on ImageNet.

        A classifier among them is left aside.

        Raises
        ------
        UsageError
            There is no such file, it holds no weights, or those of another network.
        """
        try:
            with Path(path).open("rb") as file:
                found = load_tensors(file, str(path))
        except OSError as error:
            raise UsageError(f"{path}: expected the weights of a ResNet: {error.strerror or error}.") from error
        if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
            raise UsageError(f"{path}: expected the weights of a ResNet by their names, found something else.")
        weights = {name: value for name, value in found.items() if not name.startswith("fc.")}
        try:
            self.load_state_dict(weights)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:300]
            raise UsageError(f"{path}: these are the weights of another network: {reason}") from error


def resnet_for(
    input_shape: Sequence[int],
    *,
    depth: Depth,
    width: int,
    weights: str | None,
    dilated: bool = False,
    small_stem: bool = False,
) -> ResNet:
    """Build a ResNet for images of this shape, with the weights of a file if one is named."""
    check_image("a ResNet", input_shape)
    trunk = ResNet(input_shape[0], depth=depth, width=width, dilated=dilated, small_stem=small_stem)
    if weights is not None:
        trunk.load_weights(weights)
    return trunk


def resnet(
    input_shape: Sequence[int],
    tasks: Sequence[Task],
    *,
    depth: Depth = 18,
    width: int = 64,
    small_stem: bool = False,
    weights: str | None = None,
) -> HardSharing:
    """Join a ResNet, averaged over the image, with one linear decoder a task.

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
    small_stem : bool
        A 3x3 convolution in place of the 7x7 one with stride and pooling, for images such as CIFAR's.
    weights : str, optional
        File with pretrained weights under torchvision's names.
    """
    trunk = resnet_for(input_shape, depth=depth, width=width, weights=weights, small_stem=small_stem)
    encoder = nn.Sequential(trunk, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return HardSharing(encoder, {task.name: nn.Linear(trunk.out_channels, task.out_features) for task in tasks})
