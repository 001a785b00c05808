"""Layers that use their first channels, as many as is chosen; whole, each is the layer that it was made from."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtobal.errors import UsageError
from mtobal.models.decoders import ASPP


def slim(module: nn.Module, choices: int) -> nn.Module:
    """Replace the layers of a module, which keep their parameters and names.

    Parameters
    ----------
    module : Module
        Of Conv2d without groups, BatchNorm2d, Linear, and parts without parameters.
    choices : int
        How many sets of statistics each batch norm has room for.

    Returns
    -------
    Module
        The same, changed; or another where it is a single layer.
    """
    if isinstance(module, nn.BatchNorm2d):
        return SlimBatchNorm2d(module, choices)
    if isinstance(module, nn.Linear):
        return SlimLinear(module)
    if isinstance(module, nn.Conv2d) and module.groups == 1 and module.padding_mode == "zeros":
        return SlimConv2d(module)
    if next(module.parameters(recurse=False), None) is not None:
        raise UsageError(
            "Slimmable is made of Conv2d without groups, BatchNorm2d, Linear and parts without parameters, not of "
            f"{module}."
        )
    for name, child in module.named_children():
        setattr(module, name, slim(child, choices))
    if isinstance(module, ASPP):  # reads its scales one behind the other, of each the first channels
        reader = module.get_submodule("project.0.0")
        assert isinstance(reader, SlimConv2d)
        reader.parts = len(module.scales) + 1
    return module


class SlimLinear(nn.Module):
    """A linear layer that reads as many of its first features as come.

    Parameters
    ----------
    layer : Linear
        What it is made from.

    Attributes
    ----------
    width : float
        Share of the outputs that are computed.
    keeps_outputs : bool
        Whether these are all, at any width.
    """

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias
        self.width = 1.0
        self.keeps_outputs = False

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the first outputs."""
        outputs = _first(len(self.weight), self)
        bias = None if self.bias is None else self.bias[:outputs]
        return F.linear(inputs, self.weight[:outputs, : inputs.shape[-1]], bias)

    def products(self, inputs: Tensor) -> int:
        """Return the multiply-adds of one number of the output."""
        return inputs.shape[-1]


class SlimConv2d(nn.Module):
    """A convolution that reads as many of its first channels as come.

    Parameters
    ----------
    layer : Conv2d
        What it is made from.

    Attributes
    ----------
    width : float
        Share of the output channels that are computed.
    keeps_outputs : bool
        Whether these are all, at any width.
    parts : int
        The inputs are the first channels of so many parts.
    """

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias
        self.stride, self.padding, self.dilation = layer.stride, layer.padding, layer.dilation
        self.width = 1.0
        self.keeps_outputs = False
        self.parts = 1

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the first output channels."""
        outputs, channels = _first(len(self.weight), self), inputs.shape[1]
        weight = self.weight[:outputs]
        if channels < weight.shape[1]:
            weight = torch.cat(
                [part[:, : channels // self.parts] for part in weight.chunk(self.parts, dim=1)], dim=1
            )
        bias = None if self.bias is None else self.bias[:outputs]
        return F.conv2d(inputs, weight, bias, self.stride, self.padding, self.dilation)

    def products(self, inputs: Tensor) -> int:
        """Return the multiply-adds of one number of the output."""
        return inputs.shape[1] * math.prod(self.weight.shape[2:])


def _first(outputs: int, layer: SlimLinear | SlimConv2d) -> int:
    """Return how many outputs a layer computes: its share, rounded up."""
    return outputs if layer.keeps_outputs else math.ceil(layer.width * outputs - 1e-9)


class SlimBatchNorm2d(nn.BatchNorm2d):
    """A batch norm with running averages of the widest configuration, and statistics of others on demand.

    Parameters
    ----------
    layer : BatchNorm2d
        What it is made from.
    choices : int
        How many configurations there are.

    Attributes
    ----------
    slot : int or None
        Number of the configuration; None for the widest.
    ready : bool
        Whether the statistics of this configuration are known.
    recalibrating : int
        Number of the batch from which they are being taken; 0 while they are not.
    """

    means: Tensor
    variances: Tensor

    def __init__(self, layer: nn.BatchNorm2d, choices: int) -> None:
        super().__init__(layer.num_features, layer.eps, layer.momentum, layer.affine, layer.track_running_stats)
        self.weight, self.bias = layer.weight, layer.bias
        self.running_mean, self.running_var = layer.running_mean, layer.running_var
        self.num_batches_tracked = layer.num_batches_tracked
        self.register_buffer("means", torch.zeros(choices, layer.num_features))
        self.register_buffer("variances", torch.ones(choices, layer.num_features))
        self.slot: int | None = None
        self.ready = False
        self.recalibrating = 0

    def forward(self, inputs: Tensor) -> Tensor:
        """Normalise the first channels."""
        if self.slot is None:
            return super().forward(inputs)
        channels = inputs.shape[1]
        weight, bias = (None if each is None else each[:channels] for each in (self.weight, self.bias))
        if self.training:
            return F.batch_norm(inputs, None, None, weight, bias, training=True, eps=self.eps)
        if not self.ready and not self.recalibrating:
            raise UsageError(
                "this configuration has no statistics of its batch norms: call recalibrate(batches) in eval mode."
            )
        mean, variance = self.means[self.slot, :channels], self.variances[self.slot, :channels]
        if self.recalibrating:  # the plain average over batches
            share = 1 / self.recalibrating
            return F.batch_norm(inputs, mean, variance, weight, bias, True, share, self.eps)
        return F.batch_norm(inputs, mean, variance, weight, bias, False, 0.0, self.eps)
