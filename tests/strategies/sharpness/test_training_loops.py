"""Perturbations on several ranks and in Lightning."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset

from mtobal import Balancer, UsageError
from mtobal.callbacks import MultiTaskBalancer
from mtobal.gradients import rng_state
from networks import TASKS, SharedNet, batch, frozen, losses
from processes import run_on_ranks
from strategies.sharpness.noisy import NoisyNet

SPECS = [
    "sam",
    "samo(rho=0.05)",
    "cagrad+samo(rho=0.05)",
    "uw+mgda+samo(rho=0.05, local=exact)",
    "pcgrad+f_mtl(rho=0.1)",
]
STEPS = 3


def part(data, rank: int | None):
    if rank is None:
        return data
    inputs, targets = data
    mine = slice(rank * len(inputs) // 2, (rank + 1) * len(inputs) // 2)
    return inputs[mine], {task: target[mine] for task, target in targets.items()}


def train(rank: int | None, spec: str, wrap: dict | None) -> dict:
    net = SharedNet()
    model: nn.Module = net
    if wrap is not None:
        net.spare.requires_grad_(bool(wrap.get("find_unused_parameters")))
        model = DistributedDataParallel(net, **wrap)
    balancer, optimizer = Balancer(spec, net), torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    for step in range(STEPS):
        data = part(batch(step), rank)
        balancer.step(lambda data=data: losses(model, data), optimizer)
    return {
        "net": {name: value.detach().clone() for name, value in net.state_dict().items()},
        "weights": balancer.weights,
        "state": frozen(balancer.strategy.state_dict()),
    }


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("wrap", [{}, {"find_unused_parameters": True}], ids=["plain", "unused"])
def test_two_ranks_with_half_of_the_batch_each_equal_one_process(spec: str, wrap: dict, tmp_path: Path) -> None:
    """So both have moved to the same points, whatever the halves say."""
    one, other = run_on_ranks(tmp_path, train, spec, wrap)
    alone = train(None, spec, None)
    for name, value in alone["net"].items():
        assert torch.equal(one["net"][name], other["net"][name]), name
        torch.testing.assert_close(one["net"][name], value, rtol=1e-9, atol=1e-12, msg=name)
    assert one["state"] == other["state"]
    assert one["weights"] == pytest.approx(alone["weights"], rel=1e-8)


def train_apart(rank: int, spec: str) -> list[Tensor]:
    """One task on the one rank, the others on the other."""
    net = SharedNet()
    net.spare.requires_grad_(False)
    model = DistributedDataParallel(net, find_unused_parameters=True)
    balancer, optimizer = Balancer(spec, net, tasks=TASKS), torch.optim.SGD(net.parameters(), lr=0.05)

    def closure() -> dict[str, Tensor | None]:
        present = TASKS[:1] if rank == 0 else TASKS[1:]
        return {task: loss if task in present else None for task, loss in losses(model, batch()).items()}

    for _ in range(STEPS):
        balancer.step(closure, optimizer)
    return [parameter.detach().clone() for parameter in net.parameters()]


@pytest.mark.parametrize("spec", SPECS)
def test_tasks_may_be_on_different_ranks(spec: str, tmp_path: Path) -> None:
    one, other = run_on_ranks(tmp_path, train_apart, spec)
    assert all(map(torch.equal, one, other))
    assert all(parameter.isfinite().all() for parameter in one)


class Module(pl.LightningModule):
    """A plain LightningModule, as a user writes it."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.net = NoisyNet(dtype=dtype)
        self.logged: list[float] = []

    def on_train_batch_start(self, data, batch_idx):
        torch.manual_seed(batch_idx)

    def training_step(self, data, batch_idx):
        inputs, *targets = data
        values = losses(self.net, (inputs, dict(zip(TASKS, targets, strict=True))))
        total = sum(values.values())
        self.log("total", total, on_epoch=True)
        return {"loss": total, "losses": values}

    def on_train_batch_end(self, outputs, data, batch_idx):
        self.logged.append(sum(loss.item() for loss in outputs["losses"].values()))

    def train_dataloader(self):
        inputs, targets = batch(size=32, dtype=next(self.parameters()).dtype)
        return DataLoader(TensorDataset(inputs, *targets.values()), batch_size=8)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


class Halved(Module):
    """Each of two ranks takes its half of every batch; without what differs from half to half."""

    def __init__(self) -> None:
        super().__init__()
        self.net = SharedNet()
        self.net.spare.requires_grad_(False)

    def training_step(self, data, batch_idx):
        if dist.is_initialized():
            data = [part.chunk(2)[dist.get_rank()] for part in data]
        return super().training_step(data, batch_idx)


def fit(tmp_path: Path, module: Module, spec: str, **options) -> pl.Trainer:
    defaults = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = pl.Trainer(
        callbacks=[MultiTaskBalancer(spec)],
        max_epochs=1,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        **{**defaults, **options},
    )
    trainer.fit(module)
    return trainer


def by_hand(module: Module, spec: str, accumulate: int = 1) -> None:
    balancer, optimizer = Balancer(spec, module), module.configure_optimizers()
    for number, (inputs, *targets) in enumerate(module.train_dataloader()):
        data = inputs, dict(zip(TASKS, targets, strict=True))

        def run(data: object = data) -> dict[str, Tensor]:
            return losses(module.net, data)

        torch.manual_seed(number)
        if accumulate == 1:
            balancer.step(run, optimizer)
            continue
        before = rng_state()
        last = (number + 1) % accumulate == 0
        with nullcontext() if last else balancer.accumulating():
            (balancer(run(), again=(run, before)) / accumulate).backward()
        if last:
            optimizer.step()
            optimizer.zero_grad()


@pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning")
class TestLightning:
    @pytest.mark.parametrize("spec", [*SPECS, "famo+samo(rho=0.05)"])
    def test_it_equals_a_plain_loop(self, spec: str, tmp_path: Path) -> None:
        """With dropout and batch norm; the running statistics count each batch once."""
        module, expected = Module(), Module()
        trainer = fit(tmp_path, module, spec)
        by_hand(expected, spec)
        for name, value in expected.state_dict().items():
            torch.testing.assert_close(module.state_dict()[name], value, rtol=1e-10, atol=1e-13, msg=name)
        assert module.net.encoder[1].num_batches_tracked == 4
        assert trainer.callback_metrics["total_epoch"].item() == pytest.approx(sum(module.logged) / 4)

    @pytest.mark.parametrize("spec", SPECS)
    def test_accumulation_equals_a_plain_loop(self, spec: str, tmp_path: Path) -> None:
        module, expected = Module(), Module()
        fit(tmp_path, module, spec, accumulate_grad_batches=2)
        by_hand(expected, spec, accumulate=2)
        for name, value in expected.state_dict().items():
            torch.testing.assert_close(module.state_dict()[name], value, rtol=1e-10, atol=1e-13, msg=name)

    @pytest.mark.filterwarnings("ignore:You are using .ddp_fork.")
    @pytest.mark.parametrize("wrap", [{}, {"static_graph": True}], ids=["plain", "static"])
    @pytest.mark.parametrize("spec", SPECS)
    def test_two_ranks_equal_one_process(self, spec: str, wrap: dict, tmp_path: Path) -> None:
        together, alone = Halved(), Halved()
        ddp = pl.strategies.DDPStrategy(start_method="fork", process_group_backend="gloo", **wrap)
        fit(tmp_path, together, spec, strategy=ddp, devices=2, use_distributed_sampler=False)
        fit(tmp_path, alone, spec)
        for (name, parameter), other in zip(together.named_parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(parameter, other, rtol=1e-9, atol=1e-12, msg=name)

    @pytest.mark.parametrize("spec", SPECS)
    def test_bfloat16(self, spec: str, tmp_path: Path) -> None:
        module = Module(torch.float32)
        fit(tmp_path, module, spec, precision="bf16-mixed")
        exact = Module(torch.float32)
        fit(tmp_path, exact, spec)
        for parameter, other in zip(module.parameters(), exact.parameters(), strict=True):
            torch.testing.assert_close(parameter, other, rtol=0.1, atol=0.02)

    def test_parameters_that_are_split_over_devices_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="needs per-task gradients of whole parameters"):
            fit(tmp_path, Module(torch.float32), "samo", strategy=pl.strategies.ModelParallelStrategy())
