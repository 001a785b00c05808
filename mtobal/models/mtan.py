"""Attention networks: all tasks share a SegNet, and each chooses by attention what it takes from every level."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtobal.models.base import Inputs, MultiTaskModel
from mtobal.models.encoders import check_image
from mtobal.models.segnet import FILTERS, Places, SegNet, SegNetHead, conv_bn_relu, initialise, unpool
from mtobal.tasks import Task


class Attention(nn.Sequential):
    """A mask from 0 to 1 of each pixel and channel."""

    def __init__(self, in_channels: int, channels: int, middle: int | None = None) -> None:
        middle = channels if middle is None else middle
        super().__init__(
            nn.Conv2d(in_channels, middle, 1),
            nn.BatchNorm2d(middle),
            nn.ReLU(),
            nn.Conv2d(middle, channels, 1),
            nn.BatchNorm2d(channels),
            nn.Sigmoid(),
        )


class TaskAttention(nn.Module):
    """The masks of one task, by level of the encoder and of the decoder."""

    def __init__(self, filters: Sequence[int]) -> None:
        super().__init__()
        below = (filters[0], *filters)
        self.encoder = nn.ModuleList(
            Attention(width if level == 0 else 2 * width, width) for level, width in enumerate(filters)
        )
        self.decoder = nn.ModuleList(
            Attention(width + below[level], below[level]) for level, width in enumerate(filters)
        )


class MTANSegNet(MultiTaskModel):
    """A SegNet, and for every task attention masks over its levels.

    Down the encoder, a task masks the features of each level by what it sees of them and what it took from the
    level above; convolutions that all tasks share bring that to the next level. Up the decoder it goes likewise.
    The masks belong to their task; all other parameters but the heads are shared.

    Parameters
    ----------
    in_channels : int
        Channels of an image.
    out_channels : mapping from str to int
        Channels of the output of each task.
    filters : sequence of int
        Channels of the levels, from the image down.

    References
    ----------
    Liu, Johns and Davison, "End-to-End Multi-Task Learning with Attention", CVPR 2019.
    """

    def __init__(
        self, in_channels: int, out_channels: Mapping[str, int], filters: Sequence[int] = FILTERS
    ) -> None:
        super().__init__()
        self.trunk = SegNet(in_channels, filters)
        levels = range(len(filters))
        above = (filters[0], *filters)
        below = (*filters[1:], filters[-1])
        self.encoder_carry = nn.ModuleList(conv_bn_relu(filters[k], below[k]) for k in levels)
        self.decoder_carry = nn.ModuleList(conv_bn_relu(filters[k], above[k]) for k in levels)
        self.attention = nn.ModuleDict({task: TaskAttention(filters) for task in out_channels})
        for part in (self.encoder_carry, self.decoder_carry, self.attention):
            initialise(part)
        self.heads = nn.ModuleDict(
            {task: SegNetHead(filters[0], channels) for task, channels in out_channels.items()}
        )

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(self.heads)

    def encode(self, inputs: Inputs) -> dict[str, Tensor]:
        """Return the features that each task chose, of the size of the image."""
        assert isinstance(inputs, Tensor)
        down, places, bottom = self._go_down(inputs)
        up = self._go_up(bottom, places)
        chosen = {}
        for task, attention in self.attention.items():
            assert isinstance(attention, TaskAttention)
            chosen[task] = self._attend(attention, down, up)
        return chosen

    def decode(self, representation: Any, inputs: Inputs) -> dict[str, Tensor]:
        """Return the output of every task."""
        return {task: head(representation[task]) for task, head in self.heads.items()}

    def task_modules(self, task: str) -> Sequence[nn.Module]:
        return [self.attention[task], self.heads[task]]

    def last_shared(self) -> nn.Module:
        return self.get_submodule("decoder_carry.0.0")

    def _go_down(self, features: Tensor) -> tuple[list[tuple[Tensor, Tensor]], list[Places], Tensor]:
        """Return changed and refined features of each level, where the maxima were, and the last features."""
        levels, places = [], []
        for change, refine in zip(self.trunk.encoder, self.trunk.encoder_refine, strict=True):
            changed = change(features)
            refined = refine(changed)
            features, indices = F.max_pool2d(refined, 2, return_indices=True)
            levels.append((changed, refined))
            places.append((indices, refined.shape[-2:]))
        return levels, places, features

    def _go_up(self, features: Tensor, places: Sequence[Places]) -> list[tuple[Tensor, Tensor]]:
        """Return unpooled and refined features of each level, from the image down."""
        levels = []
        layers = zip(self.trunk.decoder, self.trunk.decoder_refine, places, strict=True)
        for change, refine, place in reversed(list(layers)):
            unpooled = unpool(features, place)
            features = refine(change(unpooled))
            levels.append((unpooled, features))
        return levels[::-1]

    def _attend(
        self,
        attention: TaskAttention,
        down: Sequence[tuple[Tensor, Tensor]],
        up: Sequence[tuple[Tensor, Tensor]],
    ) -> Tensor:
        """Return what one task takes from the trunk in the end."""
        taken: list[Tensor] = []
        for mask, carry, (changed, refined) in zip(attention.encoder, self.encoder_carry, down, strict=True):
            chosen = mask(torch.cat([changed, *taken], dim=1)) * refined
            taken = [F.max_pool2d(carry(chosen), 2)]
        features = taken[0]
        steps = zip(attention.decoder, self.decoder_carry, up, strict=True)
        for mask, carry, (unpooled, refined) in reversed(list(steps)):
            wider = F.interpolate(features, unpooled.shape[-2:], mode="bilinear", align_corners=True)
            features = mask(torch.cat([unpooled, carry(wider)], dim=1)) * refined
        return features


def mtan_segnet(
    input_shape: Sequence[int], tasks: Sequence[Task], *, filters: tuple[int, ...] = FILTERS
) -> MTANSegNet:
    """Build the attention network on a SegNet with one small head a task.

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
    return MTANSegNet(input_shape[0], {task.name: task.out_features for task in tasks}, filters)
