"""Models of which a part is compiled."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mtobal import Balancer, UsageError


def test_half_precision_is_no_corrupted_graph() -> None:
    """In half precision, the gradients of single tasks add up to that of the sum in few digits only."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    encoder = nn.Sequential(*[layer for _ in range(8) for layer in (nn.Linear(32, 32), nn.GELU())])
    net = nn.ModuleDict({"encoder": torch.compile(encoder, backend="aot_eager"), "heads": nn.Linear(32, 2)})
    with torch.autocast("cpu", torch.bfloat16):
        output = net["heads"](net["encoder"](torch.randn(64, 32))).float()
    losses = {"low": (output[:, 0] - 1).square().mean(), "high": (output[:, 1] + 1).square().mean()}
    Balancer("pcgrad", net)(losses).backward()
    assert encoder[0].weight.grad.isfinite().all()


class CompiledFunctionOnce(torch.autograd.Function):
    """Overwrites what it has saved, as a graph does that was compiled for a single backward pass."""

    @staticmethod
    def forward(ctx, inputs: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(inputs, weight)
        return inputs * weight

    @staticmethod
    def backward(ctx, cotangent: Tensor) -> tuple[Tensor, Tensor]:
        inputs, weight = ctx.saved_tensors
        gradient = cotangent * inputs
        inputs.data.mul_(3)
        return cotangent * weight, gradient


def test_a_graph_for_a_single_pass_is_noticed() -> None:
    weight = nn.Parameter(torch.ones(4))
    output = CompiledFunctionOnce.apply(torch.randn(4), weight)
    with pytest.raises(UsageError, match="a second backward pass gives other gradients than the first"):
        Balancer("pcgrad", nn.ParameterList([weight]))({"a": output.sum(), "b": output.square().sum()}).backward()
