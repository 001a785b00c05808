"""A physics-informed network: the residual of an equation against its boundary values.

The network u(x) shall solve u'' = -(2 pi)^2 sin(2 pi x) on the unit interval with u(0) = u(1) = 0, whose solution
is sin(2 pi x). The residual holds second derivatives and starts thousands of times larger than the boundary loss,
and any straight line may be added to a solution without changing it. `config` looks for a direction in which both
fall alike. All parameters are shared: there are no heads.

    python examples/physics_informed.py                       # ew against config
    python examples/physics_informed.py --strategies gradnorm
"""

from __future__ import annotations

import argparse
import math

import torch
from torch import Tensor, nn

import mtobal

FREQUENCY = 2 * math.pi
EDGES = torch.tensor([[0.0], [1.0]])


def losses_of(model: nn.Module, points: Tensor) -> dict[str, Tensor]:
    """Return the mean squares of the residual and of the boundary values."""
    points = points.requires_grad_()
    values = model(points)
    (slope,) = torch.autograd.grad(values.sum(), points, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.sum(), points, create_graph=True)
    residual = curvature + FREQUENCY**2 * torch.sin(FREQUENCY * points)
    return {"equation": residual.square().mean(), "boundary": model(EDGES).square().mean()}


def train(strategy: str, steps: int) -> tuple[float, dict[str, float]]:
    """Train with a strategy; return the relative error of the solution, and the losses at the end."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    balancer = mtobal.Balancer(strategy, model)
    for _ in range(steps):
        losses = losses_of(model, torch.rand(32, 1))
        optimizer.zero_grad()
        balancer(losses).backward()
        optimizer.step()
        schedule.step()
    grid = torch.linspace(0, 1, 501)[:, None]
    exact = torch.sin(FREQUENCY * grid)
    with torch.no_grad():
        error = (model(grid) - exact).norm() / exact.norm()
    return error.item(), {name: loss.item() for name, loss in losses_of(model, grid).items()}


def main() -> None:
    """Compare the strategies, and print one row for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--strategies", nargs="+", default=["config"], help="compared with ew; config by default")
    parser.add_argument("--steps", type=int, default=600)
    options = parser.parse_args()

    print(f"{options.steps} steps, one seed")
    print("strategy    relative error   equation   boundary")
    for strategy in dict.fromkeys(["ew", *options.strategies]):
        error, losses = train(strategy, options.steps)
        print(f"{strategy:10}  {error:14.4f}  {losses['equation']:9.3g}  {losses['boundary']:9.3g}")


if __name__ == "__main__":
    main()
