"""Strategies that look ahead, in Lightning: the same training as in a plain loop, and no trace of the looks."""

from __future__ import annotations

import csv
import itertools
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loops.optimization.automatic import Closure
from lightning.pytorch.utilities.rank_zero import WarningCache
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from mtobal import Balancer, UsageError
from mtobal.callbacks import MultiTaskBalancer
from networks import TASKS, SharedNet, batch, losses

SPECS = ["auto_lambda(lr=0.05)", "moml(lr=0.05)", "forum(lr=0.05)"]
STEPS = 4  # in an epoch
Data = list[Tensor]


class NoisyNet(SharedNet):
    """With dropout and batch norm, which must not notice a look ahead."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder.insert(1, nn.BatchNorm1d(8).double())
        self.encoder.append(nn.Dropout(0.3))


class Module(pl.LightningModule):
    """A plain LightningModule, as a user writes it."""

    def __init__(self, left_out: int | None = None) -> None:
        super().__init__()
        self.net = NoisyNet()
        self.left_out = left_out

    def on_train_batch_start(self, data: Data, batch_idx: int) -> None:
        torch.manual_seed(self.global_step)

    def training_step(self, data: Data, batch_idx: int) -> dict[str, object] | None:
        if batch_idx == self.left_out:
            return None
        values = task_losses(self.net, data)
        total = sum(values.values())
        self.log("total", total, on_step=True, on_epoch=True)
        return {"loss": total, "losses": values}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


def task_losses(net: nn.Module, data: Data) -> dict[str, Tensor]:
    inputs, *targets = data
    return losses(net, (inputs, dict(zip(TASKS, targets, strict=True))))


def loader(steps: int = STEPS, seed: int = 0) -> DataLoader:
    inputs, targets = batch(seed, size=8 * steps)
    return DataLoader(TensorDataset(inputs, *targets.values()), batch_size=8)


def trainer(tmp_path: Path, callback: pl.Callback, **options) -> pl.Trainer:
    defaults = {
        "accelerator": "cpu",
        "max_epochs": 2,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": tmp_path,
    }
    return pl.Trainer(callbacks=[callback], **{**defaults, **options})


@pytest.mark.parametrize("validates", [True, False])
@pytest.mark.parametrize("spec", SPECS)
def test_it_equals_a_plain_loop(spec: str, validates: bool, tmp_path: Path) -> None:
    """Three validation batches in turn, for eight steps."""
    others = loader(3, seed=1) if validates else None
    module, callback = Module(), MultiTaskBalancer(spec, validation=others)
    trainer(tmp_path, callback).fit(module, loader())

    net = NoisyNet()
    balancer = Balancer(spec, net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    turns = itertools.cycle([None] if others is None else list(others))
    for epoch in range(2):
        for number, data in enumerate(loader()):
            torch.manual_seed(epoch * STEPS + number)
            other = next(turns)
            balancer.step(
                lambda data=data: task_losses(net, data),
                optimizer,
                validation=None if other is None else lambda other=other: task_losses(net, other),
            )
        balancer.end_epoch()
    for name, value in net.state_dict().items():
        torch.testing.assert_close(module.net.state_dict()[name], value, rtol=1e-10, atol=1e-12)
    assert callback.balancer is not None
    assert callback.balancer.weights == pytest.approx(balancer.weights, rel=1e-9)
    assert len({round(weight, 6) for weight in balancer.weights.values()}) == len(TASKS)  # it did adapt
    assert module.net.encoder[1].num_batches_tracked == 2 * STEPS


def test_only_the_step_is_logged(tmp_path: Path) -> None:
    module, logger = Module(), CSVLogger(tmp_path)
    callback = MultiTaskBalancer("auto_lambda", validation=loader(1, seed=1))
    fit = trainer(tmp_path, callback, max_epochs=1, logger=logger, log_every_n_steps=1)
    fit.fit(module, loader())
    with (Path(logger.log_dir) / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    logged = [float(row["total_step"]) for row in rows if row["total_step"]]
    shown = [sum(float(row[f"mtl/loss/{task}"]) for task in TASKS) for row in rows if row["mtl/loss/seg"]]
    assert len(logged) == STEPS
    assert logged == pytest.approx(shown, rel=1e-5)


@pytest.mark.parametrize("spec", SPECS)
def test_each_accumulated_batch_looks_ahead_by_itself(spec: str, tmp_path: Path) -> None:
    module, callback = Module(), MultiTaskBalancer(spec, validation=loader(1, seed=1))
    trainer(tmp_path, callback, accumulate_grad_batches=2).fit(module, loader())
    assert all(parameter.isfinite().all() for parameter in module.parameters())


def test_a_batch_that_the_training_step_leaves_out_is_left_out(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(Closure, "warning_cache", WarningCache())  # Lightning says it once a process
    module, callback = Module(left_out=1), MultiTaskBalancer("auto_lambda", validation=loader(1, seed=1))
    with pytest.warns(UserWarning, match="returned `None`"):
        trainer(tmp_path, callback).fit(module, loader())
    assert module.net.encoder[1].num_batches_tracked == 2 * (STEPS - 1)


def test_batches_that_end_are_an_error(tmp_path: Path) -> None:
    callback = MultiTaskBalancer("auto_lambda", validation=iter(list(loader(2, seed=1))))
    with pytest.raises(UsageError, match="validation= has no batches, or no more"):
        trainer(tmp_path, callback).fit(Module(), loader())
