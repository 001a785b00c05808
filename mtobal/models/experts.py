"""What models with experts are made of: encoders of the zoo as experts, gates, and the decoders of the tasks."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from mtobal.errors import UsageError, unknown_name
from mtobal.models.base import Inputs, MultiTaskModel
from mtobal.models.celeba_net import celeba_net
from mtobal.models.cifar_nets import cifar_pcgrad, cifar_routing
from mtobal.models.deeplab import deeplab
from mtobal.models.hard_sharing import HardSharing, hard_sharing, last_layer
from mtobal.models.lenet import lenet
from mtobal.models.mlp import mlp
from mtobal.models.office_resnet import office_resnet
from mtobal.models.pretrained import pretrained
from mtobal.models.resnet import resnet
from mtobal.models.segnet import segnet
from mtobal.models.vit import vit
from mtobal.options import resolve_options
from mtobal.tasks import Task

GateInput = Literal["pooled", "flat"]
"""What a gate sees of an image: its averages over a grid, or every pixel. Of a vector it sees all."""

BASES: dict[str, Callable[..., HardSharing]] = {
    "celeba_net": celeba_net,
    "cifar_pcgrad": cifar_pcgrad,
    "cifar_routing": cifar_routing,
    "deeplab": deeplab,
    "hard_sharing": hard_sharing,
    "lenet": lenet,
    "mlp": mlp,
    "office_resnet": office_resnet,
    "pretrained": pretrained,
    "resnet": resnet,
    "segnet": segnet,
    "vit": vit,
}
"""Models of hard sharing: their encoders may be experts, their decoders read the mixed features."""

INPUT_GRID = 4
"""Cells a side in which gates see an image: its mean colour alone would tell them next to nothing."""


def network(
    base: str | None, options: Mapping[str, Any] | None, input_shape: Sequence[int]
) -> Callable[[Sequence[Task]], HardSharing]:
    """Return what draws a new network of hard sharing with decoders for some tasks, or for none.

    Parameters
    ----------
    base : str or None
        The model; None is a perceptron for vectors and a small convolutional network for images.
    options : mapping or None
        Its options.
    input_shape : sequence of int
        Shape of an input.
    """
    name = base or ("mlp" if len(input_shape) == 1 else "hard_sharing")
    if name not in BASES:
        raise unknown_name("base", name, BASES)
    resolved = resolve_options(f"model {name!r}", BASES[name], options or {})
    check_sizes(f"model {name!r}", resolved)
    return lambda tasks: BASES[name](input_shape, tasks, **resolved)


def behind_encoder(drawn: HardSharing, decoders: Mapping[str, nn.Module]) -> HardSharing:
    """Return what a network of hard sharing does behind its encoder, with other decoders of its kind."""
    return type(drawn)(nn.Identity(), decoders)


class TaskFeatures(MultiTaskModel):
    """A model in which every task has features of its own, and a decoder that reads them.

    Where every task has inputs of its own, its features are those of these inputs. A task that is missing from
    them is missing from the outputs.

    Attributes
    ----------
    tail : HardSharing
        The decoders, in a network without an encoder.
    """

    tail: HardSharing

    @property
    def tasks(self) -> tuple[str, ...]:
        return self.tail.tasks

    @abstractmethod
    def features(self, inputs: Tensor, tasks: Sequence[str]) -> dict[str, Tensor]:
        """Return the features of some tasks."""

    def encode(self, inputs: Inputs) -> dict[str, Tensor]:
        """Return the features of each task."""
        if isinstance(inputs, dict):
            return {task: self.features(inputs[task], [task])[task] for task in self.tasks if task in inputs}
        assert isinstance(inputs, Tensor)
        return self.features(inputs, self.tasks)

    def decode(self, representation: Any, inputs: Inputs) -> dict[str, Tensor]:
        """Return the output of every task that has features."""
        return self.tail.decode(representation, inputs)


class Gate(nn.Module):
    """Weights of experts: the softmax of a linear function of what the gate sees of a sample."""

    def __init__(self, in_features: int, experts: int) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, experts)

    def forward(self, seen: Tensor) -> Tensor:
        """Return weights (N, experts) that sum to one."""
        return torch.softmax(self.linear(seen), dim=1)


def seen_by_gates(features: Tensor, gate_input: GateInput, grid: int = INPUT_GRID) -> Tensor:
    """Return what a gate sees of each sample, as one vector.

    Parameters
    ----------
    features : Tensor of shape (N, length) or (N, channels, height, width)
        Inputs, or features between two levels.
    gate_input : str
        Averages over a grid, or every number.
    grid : int
        Cells a side; one is the average over the whole map.
    """
    if gate_input == "pooled" and features.ndim == 4:
        height, width = features.shape[-2:]
        features = F.adaptive_avg_pool2d(features, (min(grid, height), min(grid, width)))
    return features.flatten(1)


def seen_size(shape: Sequence[int], gate_input: GateInput, grid: int = INPUT_GRID) -> int:
    """Return the length of what a gate sees of features of this shape."""
    return seen_by_gates(torch.empty((1, *shape), device="meta"), gate_input, grid).shape[1]


def mix(weights: Tensor, outputs: Tensor) -> Tensor:
    """Return the weighted sum over experts of their outputs.

    Parameters
    ----------
    weights : Tensor of shape (N, experts)
        Of each sample.
    outputs : Tensor of shape (N, experts, ...)
        Of the experts.
    """
    return torch.einsum("nk,nk...->n...", weights, outputs)


def output_shape(module: nn.Module, input_shape: Sequence[int]) -> tuple[int, ...]:
    """Return the shape of what a module makes of one sample, without computing it."""
    weights = {name: torch.empty_like(value, device="meta") for name, value in module.state_dict().items()}
    inputs = torch.empty((2, *input_shape), device="meta")  # two, because BatchNorm refuses to train on one
    return tuple(functional_call(module, weights, (inputs,)).shape[1:])


def last_layers(experts: Sequence[nn.Module]) -> nn.ModuleList:
    """Return the last layer of each expert: side by side, they are the last that is shared."""
    return nn.ModuleList(last_layer(expert) for expert in experts)


def check_sizes(owner: str, options: Mapping[str, Any]) -> None:
    """Refuse whole numbers below one: in a model of the zoo, each is a size or counts something."""
    for name, value in options.items():
        for size in value if isinstance(value, tuple) else (value,):
            if type(size) is int and size < 1:
                raise UsageError(f"{owner}: {name} should be 1 or more, not {size}.")
