"""Task-adaptive restoration: one network, part of whose weights it generates from what it has to restore."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtobal.errors import UsageError
from mtobal.models.base import Inputs
from mtobal.models.hard_sharing import HardSharing, last_layer
from mtobal.tasks import Task

EPSILON = 1e-5
"""Added to a variance."""


class PixelNorm(nn.Module):
    """Bring the channels of every pixel to mean zero and variance one, then scale and shift each channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels, 1, 1))
        self.bias = nn.Parameter(torch.zeros(channels, 1, 1))

    def forward(self, features: Tensor) -> Tensor:
        """Return features of the same shape."""
        centred = features - features.mean(1, keepdim=True)
        scale = (centred.square().mean(1, keepdim=True) + EPSILON).rsqrt()  # many times as fast as torch.var_mean
        return centred * scale * self.weight + self.bias


class AdaptiveDepthwise(nn.Module):
    """A 3 x 3 convolution of every channel by itself, whose kernel may be changed for each sample.

    The kernel is ``shared + gain * generated``. The gain of each channel starts at zero.

    Parameters
    ----------
    channels : int
    adaptive : bool
        Whether there are generated kernels.
    """

    def __init__(self, channels: int, *, adaptive: bool) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.empty(channels, 1, 3, 3).uniform_(-1 / 3, 1 / 3))
        self.gain = nn.Parameter(torch.zeros(channels, 1, 1, 1)) if adaptive else None

    def forward(self, features: Tensor, generated: Tensor | None) -> Tensor:
        """Convolve features (B, C, H, W), with generated kernels (B, C, 1, 3, 3) if there are any."""
        if self.gain is None:
            return F.conv2d(features, self.kernel, padding=1, groups=len(self.kernel))
        assert generated is not None
        kernels = (self.kernel + self.gain * generated).flatten(0, 1)
        # The samples side by side as channels: then each has a kernel of its own.
        joined = features.flatten(0, 1)[None]
        return F.conv2d(joined, kernels, padding=1, groups=len(kernels)).view_as(features)


class ChannelAttention(nn.Module):
    """Attention of channels to channels, each described by all of its pixels."""

    def __init__(self, channels: int, heads: int, *, adaptive: bool) -> None:
        super().__init__()
        self.heads = heads
        self.enter = nn.Conv2d(channels, 3 * channels, 1, bias=False)
        self.mix = AdaptiveDepthwise(3 * channels, adaptive=adaptive)
        self.sharpness = nn.Parameter(torch.ones(heads, 1, 1))
        self.leave = nn.Conv2d(channels, channels, 1, bias=False)

    def forward(self, features: Tensor, generated: Tensor | None) -> Tensor:
        """Return features of the same shape."""
        parts = self.mix(self.enter(features), generated).flatten(2)
        queries, keys, values = parts.unflatten(1, (3, self.heads, -1)).unbind(1)
        similar = F.normalize(queries, dim=-1) @ F.normalize(keys, dim=-1).mT
        attended = (similar * self.sharpness).softmax(-1) @ values
        leaving: Tensor = self.leave(attended.reshape(features.shape))
        return leaving


class GatedFeedForward(nn.Module):
    """Widen, and let one half of the channels gate the other."""

    def __init__(self, channels: int, *, adaptive: bool) -> None:
        super().__init__()
        self.enter = nn.Conv2d(channels, 4 * channels, 1, bias=False)
        self.mix = AdaptiveDepthwise(4 * channels, adaptive=adaptive)
        self.leave = nn.Conv2d(2 * channels, channels, 1, bias=False)

    def forward(self, features: Tensor, generated: Tensor | None) -> Tensor:
        """Return features of the same shape."""
        gate, value = self.mix(self.enter(features), generated).chunk(2, dim=1)
        leaving: Tensor = self.leave(F.gelu(gate) * value)
        return leaving


def kernel_channels(channels: int) -> tuple[int, int]:
    """Return how many kernels attention and feed-forward of a block take for a sample."""
    return 3 * channels, 4 * channels


class TransformerBlock(nn.Module):
    """Attention and feed-forward, each added to what it reads."""

    def __init__(self, channels: int, heads: int, *, adaptive: bool) -> None:
        super().__init__()
        self.attention_norm = PixelNorm(channels)
        self.attention = ChannelAttention(channels, heads, adaptive=adaptive)
        self.feed_forward_norm = PixelNorm(channels)
        self.feed_forward = GatedFeedForward(channels, adaptive=adaptive)

    def forward(self, features: Tensor, generated: tuple[Tensor | None, Tensor | None] = (None, None)) -> Tensor:
        """Return features of the same shape."""
        for_attention, for_feed_forward = generated
        features = features + self.attention(self.attention_norm(features), for_attention)
        after: Tensor = features + self.feed_forward(self.feed_forward_norm(features), for_feed_forward)
        return after


class WeightGenerator(nn.Module):
    """From the features of a degraded picture to kernels for it.

    What describes the degradation is averaged over all pixels. No gradient goes into the features.

    Parameters
    ----------
    channels : int
        Of the features, and of the description.
    sizes : sequence of int
        How many kernels each layer takes.
    """

    def __init__(self, channels: int, sizes: Sequence[int]) -> None:
        super().__init__()
        self.describe = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.GELU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(channels, channels),
            nn.GELU(),
        )
        self.generate = nn.ModuleList(nn.Sequential(nn.Linear(channels, 9 * size), nn.GELU()) for size in sizes)

    def forward(self, features: Tensor) -> list[Tensor]:
        """Return kernels of shape (B, size, 1, 3, 3) for each layer."""
        description = self.describe(features.detach())
        return [layer(description).unflatten(1, (-1, 1, 3, 3)) for layer in self.generate]


def _stage(channels: int, blocks: int, level: int, *, adaptive: bool) -> nn.Sequential:
    return nn.Sequential(*(TransformerBlock(channels, 2**level, adaptive=adaptive) for _ in range(blocks)))


def _down(channels: int) -> nn.Sequential:
    """Halve the picture and double the channels."""
    return nn.Sequential(nn.Conv2d(channels, channels // 2, 3, padding=1, bias=False), nn.PixelUnshuffle(2))


def _up(channels: int) -> nn.Sequential:
    """Undo `_down`."""
    return nn.Sequential(nn.Conv2d(2 * channels, 4 * channels, 3, padding=1, bias=False), nn.PixelShuffle(2))


class TATTrunk(nn.Module):
    """A transformer in the form of a U, the kernels of whose decoder are generated for each picture.

    From the deepest features of the encoder a small network generates kernels, which are added to those of the
    decoder.

    Parameters
    ----------
    in_channels : int
        Channels of a picture.
    width : int
        Channels at full size; every level below has twice as many at half the size.
    blocks : sequence of int
        Transformer blocks of each level, from the picture down; those of the last one belong to the decoder.
    adaptive : bool
        Whether kernels are generated.
    """

    def __init__(self, in_channels: int, width: int, blocks: Sequence[int], *, adaptive: bool) -> None:
        super().__init__()
        levels = range(len(blocks))
        widths = [width * 2**level for level in levels]
        # The generator comes last, so that under one seed all else starts from the same weights with and without.
        self.embed = nn.Conv2d(in_channels, width, 3, padding=1)
        self.encoder = nn.ModuleList(_stage(widths[k], blocks[k], k, adaptive=False) for k in levels[:-1])
        self.down = nn.ModuleList(_down(channels) for channels in widths[:-1])
        # From the deepest level up.
        self.up = nn.ModuleList(_up(channels) for channels in widths[-2::-1])
        self.join = nn.ModuleList(nn.Conv2d(2 * channels, channels, 1, bias=False) for channels in widths[-2::-1])
        self.decoder = nn.ModuleList(_stage(widths[k], blocks[k], k, adaptive=adaptive) for k in levels[::-1])
        self.generator = (
            WeightGenerator(widths[-1], [size for channels in widths[::-1] for size in kernel_channels(channels)])
            if adaptive
            else None
        )

    def forward(self, pictures: Tensor) -> Tensor:
        """Return features of the size of the pictures."""
        features: Tensor = self.embed(pictures)
        passed = []
        for stage, down in zip(self.encoder, self.down, strict=True):
            features = stage(features)
            passed.append(features)
            features = down(features)
        kernels: Iterator[Tensor | None] = (
            itertools.repeat(None) if self.generator is None else iter(self.generator(features))
        )
        for depth, stage in enumerate(self.decoder):
            if depth:
                raised = self.up[depth - 1](features)
                features = self.join[depth - 1](torch.cat([raised, passed[-depth]], dim=1))
            generated = next(kernels), next(kernels)
            for block in stage:  # type: ignore[attr-defined]
                features = block(features, generated)
        return features


class TATNetwork(HardSharing):
    """Restore pictures by one network that generates part of its weights from each picture.

    The network sees from a picture what is wrong with it, and its decoder works differently for noise and for
    blur; so the tasks need not agree on one set of weights. Only the last convolution, whose output is added to
    the degraded picture, belongs to its task.

    Parameters
    ----------
    trunk : TATTrunk
        From pictures to features.
    heads : mapping from str to Module
        From the features to what is added to the pictures of each task.

    References
    ----------
    Yang et al., "TAT: Task-Adaptive Transformer for All-in-One Medical Image Restoration", MICCAI 2025,
    arXiv:2512.14550. There are four levels of 48 channels and more, the last convolution is shared too, and the
    attention takes pictures that are larger than those of training in windows.

    Examples
    --------
    >>> heads = {"denoise": nn.Conv2d(4, 3, 3, padding=1), "deblur": nn.Conv2d(4, 3, 3, padding=1)}
    >>> model = TATNetwork(TATTrunk(3, 4, (1, 1), adaptive=True), heads)
    >>> outputs = model({"denoise": torch.rand(2, 3, 16, 16), "deblur": torch.rand(5, 3, 16, 16)})
    >>> {task: output.shape for task, output in outputs.items()}
    {'denoise': torch.Size([2, 3, 16, 16]), 'deblur': torch.Size([5, 3, 16, 16])}
    """

    def decode(self, representation: Any, inputs: Inputs) -> dict[str, Tensor]:
        """Return the degraded pictures of every task with what its head adds to them."""
        return {
            task: (inputs[task] if isinstance(inputs, dict) else inputs) + added  # type: ignore[operator]
            for task, added in super().decode(representation, inputs).items()
        }

    def last_shared(self) -> nn.Module:
        return last_layer(self.get_submodule("encoder.decoder"))


def tat_network(
    input_shape: Sequence[int],
    tasks: Sequence[Task],
    *,
    width: int = 8,
    blocks: tuple[int, ...] = (1, 1, 1),
    adaptive: bool = True,
) -> TATNetwork:
    """Build a task-adaptive restoration network.

    Parameters
    ----------
    input_shape : sequence of int
        Channels, height and width of a picture.
    tasks : sequence of Task
        Restorations of such pictures.
    width : int
        Channels at full size.
    blocks : tuple of int
        Transformer blocks of each level, from the picture down; each level halves the picture.
    adaptive : bool
        Whether weights are generated from each picture.
    """
    divisor = 2 ** (len(blocks) - 1)
    if not blocks or min(blocks) < 1 or width < 2 or width % 2:
        raise UsageError(
            "tat_network: expected an even width from 2 and at least one block in each of one or more levels, "
            f"not width {width} and blocks {list(blocks)}."
        )
    if len(input_shape) != 3 or min(input_shape) < 1 or any(side % divisor for side in input_shape[1:]):
        raise UsageError(
            f"tat_network with {len(blocks)} levels reads pictures (channels, height, width) whose sides are "
            f"multiples of {divisor}, not inputs of shape {tuple(input_shape)}."
        )
    for task in tasks:
        if task.out_features != input_shape[0]:
            raise UsageError(
                f"tat_network gives back pictures of {input_shape[0]} channels, but task {task.name!r} has "
                f"{task.out_features}; choose tasks that restore the picture."
            )
    # The trunk comes first, so that under one seed it starts from the same weights whatever the tasks are.
    trunk = TATTrunk(input_shape[0], width, blocks, adaptive=adaptive)
    return TATNetwork(trunk, {task.name: nn.Conv2d(width, task.out_features, 3, padding=1) for task in tasks})
