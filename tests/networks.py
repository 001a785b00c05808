"""Small networks for the tests: float64 and smooth, because one ReLU kink can move a gradient by percents."""

from __future__ import annotations

import torch
from torch import Tensor, nn

TASKS = ("seg", "depth", "normal")


class SharedNet(nn.Module):
    """Three tasks on one encoder; each head is one task's own, and one layer is used by none."""

    def __init__(self, seed: int = 0, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.encoder = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 6), nn.Tanh())
            self.heads = nn.ModuleDict({task: nn.Linear(6, 2) for task in TASKS})
            self.spare = nn.Linear(2, 2)
        self.to(dtype)

    def forward(self, inputs: Tensor) -> dict[str, Tensor]:
        features = self.encoder(inputs)
        return {task: head(features) for task, head in self.heads.items()}


def batch(seed: int = 0, size: int = 16, dtype: torch.dtype = torch.float64) -> tuple[Tensor, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(size, 5, generator=generator, dtype=dtype)
    targets = {task: torch.randn(size, 2, generator=generator, dtype=dtype) for task in TASKS}
    return inputs, targets


def losses(net: nn.Module, data: tuple[Tensor, dict[str, Tensor]]) -> dict[str, Tensor]:
    """Losses of very different size, so that weights matter."""
    inputs, targets = data
    outputs = net(inputs)
    return {
        task: factor * (outputs[task] - targets[task]).square().mean()
        for task, factor in zip(TASKS, (1.0, 5.0, 0.2), strict=True)
    }


def outcome(net: nn.Module, data: tuple[Tensor, dict[str, Tensor]]) -> tuple[dict[str, Tensor], Tensor]:
    """The same losses, and the representation they were computed from."""
    inputs, targets = data
    features = net.encoder(inputs)
    outputs = {task: head(features) for task, head in net.heads.items()}
    values = {
        task: factor * (outputs[task] - targets[task]).square().mean()
        for task, factor in zip(TASKS, (1.0, 5.0, 0.2), strict=True)
    }
    return values, features


def rows_alone(net: nn.Module, data: tuple[Tensor, dict[str, Tensor]]) -> dict[str, dict[str, Tensor | None]]:
    """The gradient of each loss alone, by ordinary autograd on a graph of its own."""
    rows = {}
    for task in TASKS:
        parameters = dict(net.named_parameters())
        gradients = torch.autograd.grad(losses(net, data)[task], list(parameters.values()), allow_unused=True)
        rows[task] = dict(zip(parameters, gradients, strict=True))
    return rows


def frozen(state: object) -> object:
    """A state in a form that compares to the last bit, NaN and all; printing would leave most numbers out."""
    if isinstance(state, Tensor):
        return (str(state.dtype), tuple(state.shape), state.detach().reshape(-1).view(torch.uint8).tolist())
    if isinstance(state, dict):
        return {key: frozen(value) for key, value in state.items()}
    if isinstance(state, (list, tuple)):
        return [frozen(value) for value in state]
    return state
