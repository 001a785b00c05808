"""Strategies that revise their weights by what the module logs of its validations."""

from __future__ import annotations

from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from mtobal import UsageError
from mtobal.callbacks import MultiTaskBalancer
from networks import TASKS, SharedNet, batch, losses

pytestmark = pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning")


class Module(pl.LightningModule):
    def __init__(self, prefix: str = "val/loss/") -> None:
        super().__init__()
        self.net, self.prefix = SharedNet(), prefix

    def losses(self, data):
        inputs, *targets = data
        return losses(self.net, (inputs, dict(zip(TASKS, targets, strict=True))))

    def training_step(self, data, batch_idx):
        values = self.losses(data)
        return {"loss": sum(values.values()), "losses": values}

    def validation_step(self, data, batch_idx):
        values = self.losses(data)
        self.log_dict({f"{self.prefix}{task}": value for task, value in values.items()})
        self.log_dict({f"val/score/{task}": 1 / (1 + value) for task, value in values.items()})

    def train_dataloader(self):
        inputs, targets = batch(size=32)
        return DataLoader(TensorDataset(inputs, *targets.values()), batch_size=8)

    def val_dataloader(self):
        return self.train_dataloader()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05)


def fit(tmp_path: Path, module: Module, callback: MultiTaskBalancer) -> pl.Trainer:
    trainer = pl.Trainer(
        callbacks=[callback],
        accelerator="cpu",
        max_epochs=4,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(module)
    return trainer


@pytest.mark.parametrize("spec", ["coba(warm_up=1, window=3)", "visatb_online", "coba(warm_up=1, window=3)+mgda"])
def test_weights_follow_the_logged_validation_losses(spec: str, tmp_path: Path) -> None:
    callback, module = MultiTaskBalancer(spec), Module()
    trainer = fit(tmp_path, module, callback)
    revised = callback.strategy.revision.revised
    assert len(set(revised.tolist())) == len(TASKS)
    assert trainer.callback_metrics["val/loss/seg"] > 0
    assert callback.state_dict()["strategy"]["revision.revised"].equal(revised)


def test_metrics_under_other_names(tmp_path: Path) -> None:
    callback = MultiTaskBalancer(
        "hypervolume(objectives=metrics)",
        validation_loss="loss of {task}",
        validation_metric="val/score/{task}",
    )
    fit(tmp_path, Module("loss of "), callback)
    assert callback.strategy.revision.front is not None


def test_what_was_not_logged_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has logged none of val/loss/seg, val/loss/depth, val/loss/normal"):
        fit(tmp_path, Module("other/"), MultiTaskBalancer("coba"))
