"""A LightningModule of three tasks as a user writes it, and a trainer that prints nothing and writes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from networks import TASKS, SharedNet, batch, losses

STEPS = 6  # in an epoch


class Module(pl.LightningModule):
    """Several ranks each take their part of every batch.

    Attributes
    ----------
    number : int
        Of the batch at hand, over all epochs.
    """

    def __init__(self, net: torch.nn.Module | None = None, lr: float = 0.05) -> None:
        super().__init__()
        self.net = SharedNet() if net is None else net
        self.net.spare.requires_grad_(False)
        self.lr = lr
        self.number = 0

    def task_losses(self, data: list[Tensor]) -> dict[str, Any]:
        if dist.is_initialized():
            data = [part.chunk(dist.get_world_size())[dist.get_rank()] for part in data]
        inputs, *targets = data
        return losses(self.net, (inputs, dict(zip(TASKS, targets, strict=True))))

    def training_step(self, data, batch_idx):
        self.number = STEPS * self.current_epoch + batch_idx
        values = self.task_losses(data)
        return {"loss": sum(value for value in values.values() if value is not None), "losses": values}

    def validation_step(self, data, batch_idx):
        self.log("val_loss", sum(self.task_losses(data).values()))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)


def loader(batch_size: int = 8, dtype: torch.dtype = torch.float64) -> DataLoader:
    inputs, targets = batch(size=8 * STEPS, dtype=dtype)
    return DataLoader(TensorDataset(inputs, *targets.values()), batch_size=batch_size)


def trainer(folder: Path, *callbacks: pl.Callback, **options: Any) -> pl.Trainer:
    defaults = {
        "max_epochs": 2,
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": any(isinstance(callback, pl.callbacks.ModelCheckpoint) for callback in callbacks),
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "use_distributed_sampler": False,
        "default_root_dir": folder,
    }
    return pl.Trainer(callbacks=list(callbacks), **{**defaults, **options})


def fit(folder: Path, module: pl.LightningModule, *callbacks: pl.Callback, **options: Any) -> pl.Trainer:
    made = trainer(folder, *callbacks, **options)
    made.fit(module, loader(dtype=next(module.parameters()).dtype))
    return made


def state(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def assert_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    """To the last bit."""
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def assert_close(one: dict[str, Tensor], other: dict[str, Tensor], rtol: float = 1e-9) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=rtol, atol=1e-12, msg=name)
