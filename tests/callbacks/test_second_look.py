"""Strategies that look at the losses of a batch again after the optimizer's step, and those that count epochs."""

from __future__ import annotations

import csv
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from mtobal import Balancer
from mtobal.callbacks import MultiTaskBalancer
from networks import TASKS, SharedNet, batch, losses

SPECS = ["famo", "famo+pcgrad", "dwa(temperature=0.1)", "igb_v1(base_epoch=0)"]
STEPS = 4  # in an epoch


class NoisyNet(SharedNet):
    """The shared net with dropout and batch norm, which must not notice a second look."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed)
        self.encoder.insert(1, nn.BatchNorm1d(8).double())
        self.encoder.append(nn.Dropout(0.3))
        self.masks: list[Tensor] = []
        self.encoder[-1].register_forward_hook(lambda module, inputs, output: self.masks.append(output == 0))


class Module(pl.LightningModule):
    """A plain LightningModule, as a user writes it; its hooks watch what the second look leaves behind."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.net = NoisyNet(seed)
        self.first_losses: list[float] = []
        self.kept: list[bool] = []

    def on_train_batch_start(self, data, batch_idx):
        torch.manual_seed(self.global_step)

    def training_step(self, data, batch_idx):
        values = task_losses(self.net, data)
        total = sum(values.values())
        self.log("total", total, on_step=True, on_epoch=True)
        self.log_dict({f"loss/{task}": value for task, value in values.items()}, on_step=False, on_epoch=True)
        return {"loss": total, "losses": values}

    def on_before_zero_grad(self, optimizer):
        # Between the first forward pass and the backward pass.
        self.before = torch.get_rng_state(), [buffer.clone() for buffer in self.buffers()]

    def on_train_batch_end(self, outputs, data, batch_idx):
        # After the callbacks.
        rng, buffers = self.before
        self.first_losses.append(sum(loss.item() for loss in outputs["losses"].values()))
        self.kept.append(torch.equal(rng, torch.get_rng_state()))
        self.kept.append(all(map(torch.equal, buffers, self.buffers())))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


def task_losses(net: nn.Module, data: tuple[Tensor, ...]) -> dict[str, Tensor]:
    inputs, *targets = data
    return losses(net, (inputs, dict(zip(TASKS, targets, strict=True))))


def loader(batch_size: int = 8) -> DataLoader:
    inputs, targets = batch(size=8 * STEPS)
    return DataLoader(TensorDataset(inputs, *targets.values()), batch_size=batch_size)


def trainer(tmp_path: Path, callback: pl.Callback, epochs: int = 3, **options) -> pl.Trainer:
    defaults = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": tmp_path,
    }
    return pl.Trainer(callbacks=[callback], max_epochs=epochs, **{**defaults, **options})


def by_hand(spec: str, epochs: int = 3) -> tuple[NoisyNet, Balancer]:
    """The same training in a plain loop."""
    net = NoisyNet()
    balancer = Balancer(spec, net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    for epoch in range(epochs):
        for number, data in enumerate(loader()):
            torch.manual_seed(epoch * STEPS + number)
            balancer.step(lambda data=data: task_losses(net, data), optimizer)
        balancer.end_epoch()
    return net, balancer


@pytest.mark.parametrize("spec", SPECS)
def test_it_equals_a_plain_loop(spec: str, tmp_path: Path) -> None:
    module, callback = Module(), MultiTaskBalancer(spec)
    trainer(tmp_path, callback).fit(module, loader())
    net, balancer = by_hand(spec)
    for name, value in net.state_dict().items():
        torch.testing.assert_close(module.net.state_dict()[name], value, rtol=1e-12, atol=1e-14)
    assert callback.balancer.weights == pytest.approx(balancer.weights, rel=1e-9)
    assert len({round(weight, 6) for weight in balancer.weights.values()}) == len(TASKS)  # it did adapt


def test_the_second_look_sees_the_same_masks_and_leaves_no_trace(tmp_path: Path) -> None:
    module = Module()
    trainer(tmp_path, MultiTaskBalancer("famo")).fit(module, loader())
    first, second = module.net.masks[::2], module.net.masks[1::2]
    assert len(first) == len(second) == 3 * STEPS
    for one, other in zip(first, second, strict=True):
        assert one.any()
        assert torch.equal(one, other)
    assert not torch.equal(first[0], first[1])
    assert len(module.kept) == 2 * 3 * STEPS
    assert all(module.kept)
    assert module.net.encoder[1].num_batches_tracked == 3 * STEPS


def test_the_second_look_sees_the_moved_parameters(tmp_path: Path) -> None:
    """Its logits move as the losses of the batch under the parameters before and after say."""
    logits = []
    for lr in (0.0, 0.05):
        callback, module = MultiTaskBalancer("famo(gamma=0)"), Module()
        module.configure_optimizers = lambda lr=lr, module=module: torch.optim.SGD(module.parameters(), lr=lr)
        trainer(tmp_path, callback, epochs=1).fit(module, loader())
        logits.append(callback.strategy.loss_weighting.values.detach())
    assert logits[0].abs().max() == 0  # nothing moved, so no loss improved
    assert logits[1].abs().min() > 0.01


def test_nothing_is_logged_twice(tmp_path: Path) -> None:
    module, logger = Module(), CSVLogger(tmp_path)
    fit = trainer(tmp_path, MultiTaskBalancer("famo"), epochs=1, logger=logger, log_every_n_steps=1)
    fit.fit(module, loader())
    with (Path(logger.log_dir) / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    logged = [float(row["total_step"]) for row in rows if row["total_step"]]
    assert logged == pytest.approx(module.first_losses)
    mean = sum(module.first_losses) / STEPS
    assert fit.callback_metrics["total_epoch"].item() == pytest.approx(mean)
    assert sum(fit.callback_metrics[f"loss/{task}"].item() for task in TASKS) == pytest.approx(mean)


@pytest.mark.parametrize("spec", SPECS)
def test_a_resumed_run_equals_an_uninterrupted_one(spec: str, tmp_path: Path) -> None:
    whole = Module()
    trainer(tmp_path, MultiTaskBalancer(spec), epochs=4).fit(whole, loader())

    half = trainer(tmp_path, MultiTaskBalancer(spec), epochs=2)
    half.fit(Module(), loader())
    half.save_checkpoint(tmp_path / "half.ckpt")
    resumed = Module(seed=3)
    trainer(tmp_path, MultiTaskBalancer(spec), epochs=4).fit(resumed, loader(), ckpt_path=tmp_path / "half.ckpt")
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_with_accumulation_all_batches_of_a_step_are_looked_at_again(tmp_path: Path) -> None:
    """And so the update is that of the large batch."""
    found = {}
    for accumulate in (1, 2):
        module, callback = Module(), MultiTaskBalancer("famo+pcgrad")
        module.net = SharedNet()  # dropout and batch norm would tell batches of different size apart
        trainer(tmp_path, callback, accumulate_grad_batches=accumulate).fit(module, loader(16 // accumulate))
        found[accumulate] = callback.strategy.loss_weighting.values.detach()
    torch.testing.assert_close(found[1], found[2], rtol=1e-9, atol=1e-12)
