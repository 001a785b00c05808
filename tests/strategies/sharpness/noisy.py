"""A network on which a trace would show, with dropout and batch norm, and ways to look at it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from networks import SharedNet, batch, losses

SPECS = [
    "sam",
    "samo(rho=0.05)",
    "samo(rho=0.05, shared_direction=true, directions=2, probe=train)",
    "f_mtl(rho=0.05, norm=joint)",
    "mgda+sam",
    "pcgrad+samo(rho=0.05, local=exact)",
    "graddrop+samo(rho=0.05)",
    "uw+cagrad+f_mtl(rho=0.05, adaptive=false)",
    "nash_mtl+f_mtl(rho=0.05, mode=second)",
    "trimmed_mean+f_mtl(rho=0.05, mode=each)",
]


class NoisyNet(SharedNet):
    """The shared net with dropout and batch norm."""

    def __init__(self, seed: int = 0, dtype: torch.dtype = torch.float64) -> None:
        super().__init__(seed, dtype)
        self.encoder.insert(1, nn.BatchNorm1d(8).to(dtype))
        self.encoder.append(nn.Dropout(0.3))


def closure_of(net: nn.Module, data: object = None) -> Callable[[], dict[str, Tensor]]:
    """Run the network on one batch, as often as it is called."""
    data = batch() if data is None else data
    return lambda: losses(net, data)


def standstill(net: nn.Module) -> torch.optim.Optimizer:
    """An optimizer that moves nothing, so that gradients can be looked at where they were taken."""
    return torch.optim.SGD(net.parameters(), lr=0.0)


def traces(net: nn.Module) -> list[Tensor]:
    """Copies of whatever a look at another point might change."""
    values = [value.detach().clone() for value in (*net.parameters(), *net.buffers())]
    modes = torch.tensor([module.training for module in net.modules()])
    return [*values, modes, torch.get_rng_state()]


def gradients(net: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], rtol: float = 1e-10) -> None:
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=rtol, atol=1e-13, msg=name)
