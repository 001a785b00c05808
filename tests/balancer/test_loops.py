"""Fabric, and manual optimization in Lightning: the balanced loss in other people's loops."""

from __future__ import annotations

from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
import torch.distributed as dist
from lightning.fabric import Fabric
from lightning.fabric.plugins.precision import MixedPrecision
from lightning.fabric.strategies import DDPStrategy as FabricDDP
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor

from fits import Module, assert_close, assert_equal, loader, state, trainer
from mtobal import Balancer
from networks import TASKS, SharedNet, losses

pytestmark = [
    pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning"),
    pytest.mark.filterwarnings("ignore:You are using .ddp_fork."),
]

SPECS = ["uw", "nash_mtl", "graddrop", "samo", "f_mtl", "famo"]


class Net(SharedNet):
    """Computes its losses itself, so that a wrapped one sees the whole forward pass."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__(dtype=dtype)
        self.spare.requires_grad_(False)

    def forward(self, data: list[Tensor]) -> dict[str, Tensor]:
        if dist.is_initialized():
            data = [part.chunk(dist.get_world_size())[dist.get_rank()] for part in data]
        inputs, *targets = data
        return losses(super().forward, (inputs, dict(zip(TASKS, targets, strict=True))))


def plain(spec: str, net: Net) -> dict[str, Tensor]:
    """An ordinary loop."""
    balancer, optimizer = Balancer(spec, net), torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    for data in loader(dtype=next(net.parameters()).dtype):
        balancer.step(lambda data=data: net(data), optimizer)
    return state(net)


def train(fabric: Fabric, spec: str, dtype: torch.dtype) -> tuple[dict[str, Tensor], dict[str, float]]:
    net = Net(dtype)
    balancer = Balancer(spec, net)
    model, optimizer = fabric.setup(net, torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9))
    for data in loader(dtype=dtype):
        if balancer.strategy.repeats:
            balancer.step(lambda data=data: model(data), optimizer)
        else:
            optimizer.zero_grad()
            fabric.backward(balancer(model(data)))
            optimizer.step()
    return state(net), balancer.weights


@pytest.mark.parametrize("spec", SPECS)
def test_fabric(spec: str) -> None:
    fabric = Fabric(accelerator="cpu", devices=1)
    found, _ = train(fabric, spec, torch.float64)
    assert_close(found, plain(spec, Net()), rtol=1e-12)


@pytest.mark.parametrize("spec", ["uw", "nash_mtl", "graddrop"])
@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_fabric_in_half_precision(spec: str, precision: str) -> None:
    """Weights come from gradients in single precision, without the loss scale."""
    _, expected = train(Fabric(accelerator="cpu", devices=1), spec, torch.float32)
    if precision == "16-mixed":
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        fabric = Fabric(accelerator="cpu", devices=1, plugins=[MixedPrecision("16-mixed", "cpu", scaler=scaler)])
    else:
        fabric = Fabric(accelerator="cpu", devices=1, precision=precision)
    found, weights = train(fabric, spec, torch.float32)
    assert weights == pytest.approx(expected, rel=0.1)
    assert all(value.dtype == torch.float32 and value.isfinite().all() for value in found.values())


def fabric_on_ranks(fabric: Fabric, spec: str, folder: Path) -> None:
    found, weights = train(fabric, spec, torch.float64)
    torch.save((found, weights), folder / str(fabric.global_rank))


@pytest.mark.parametrize("spec", ["uw", "nash_mtl", "graddrop"])
def test_fabric_on_two_ranks(spec: str, tmp_path: Path) -> None:
    ddp = FabricDDP(start_method="fork", process_group_backend="gloo")
    fabric = Fabric(accelerator="cpu", devices=2, strategy=ddp)
    fabric.launch(fabric_on_ranks, spec, tmp_path)
    (one, weights), (other, others) = (torch.load(tmp_path / str(rank)) for rank in range(2))
    assert weights == others
    assert_equal(one, other)
    assert_close(one, plain(spec, Net()))


class Manual(Module):
    """Encoder and heads have an optimizer each, which are stepped by hand."""

    def __init__(self, spec: str, accumulate: int = 1) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.balancer = Balancer(spec, self)
        self.accumulate = accumulate

    def training_step(self, data, batch_idx):
        last = (batch_idx + 1) % self.accumulate == 0
        values = self.task_losses(data)
        if last:
            loss = self.balancer(values)
        else:
            with self.balancer.accumulating():
                loss = self.balancer(values)
        self.manual_backward(loss / self.accumulate)
        if last:
            for optimizer in self.optimizers():
                optimizer.step()
                optimizer.zero_grad()

    def configure_optimizers(self):
        return [
            torch.optim.SGD(self.net.encoder.parameters(), lr=0.05, momentum=0.9),
            torch.optim.SGD(self.net.heads.parameters(), lr=0.05, momentum=0.9),
        ]

    def on_save_checkpoint(self, checkpoint):
        checkpoint["balancer"] = self.balancer.state_dict()

    def on_load_checkpoint(self, checkpoint):
        self.balancer.load_state_dict(checkpoint["balancer"])


@pytest.mark.parametrize("spec", ["uw", "rlw", "nash_mtl", "graddrop", "uw+pcgrad"])
def test_manual_optimization_with_two_optimizers(spec: str, tmp_path: Path) -> None:
    module = Manual(spec)
    trainer(tmp_path, max_epochs=1).fit(module, loader())
    assert_close(state(module.net), plain(spec, Net()), rtol=1e-12)


@pytest.mark.parametrize("spec", ["nash_mtl", "graddrop"])
def test_manual_optimization_with_accumulated_batches(spec: str, tmp_path: Path) -> None:
    module, large = Manual(spec, accumulate=2), Manual(spec)
    trainer(tmp_path, max_epochs=1).fit(module, loader())
    trainer(tmp_path, max_epochs=1).fit(large, loader(batch_size=16))
    assert_close(state(module), state(large))


@pytest.mark.parametrize("spec", ["uw", "nash_mtl", "graddrop"])
def test_manual_optimization_on_two_ranks(spec: str, tmp_path: Path) -> None:
    class Keep(pl.Callback):
        def on_train_end(self, trainer, pl_module):
            torch.save(state(pl_module.net), tmp_path / str(trainer.global_rank))

    ddp = DDPStrategy(start_method="fork", process_group_backend="gloo")
    trainer(tmp_path, Keep(), max_epochs=1, strategy=ddp, devices=2).fit(Manual(spec), loader())
    one, other = (torch.load(tmp_path / str(rank)) for rank in range(2))
    assert_equal(one, other)
    assert_close(one, plain(spec, Net()))


def test_manual_optimization_resumes(tmp_path: Path) -> None:
    whole, resumed = Manual("rlw+pcgrad"), Manual("rlw+pcgrad")
    trainer(tmp_path, max_epochs=2).fit(whole, loader())
    half = trainer(tmp_path, max_epochs=1)
    half.fit(Manual("rlw+pcgrad"), loader())
    half.save_checkpoint(tmp_path / "half.ckpt")
    trainer(tmp_path, max_epochs=2).fit(resumed, loader(), ckpt_path=tmp_path / "half.ckpt")
    assert_equal(state(resumed), state(whole))
