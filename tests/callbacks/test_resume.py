"""Stopping in the middle of an epoch, and going on from the checkpoint."""

from __future__ import annotations

from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from fits import STEPS, Module, assert_equal, state, trainer
from mtobal.callbacks import ConflictMonitor, MultiTaskBalancer, TaskAffinity
from networks import batch, frozen

pytestmark = pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning")

SPECS = ["uw", "rlw+pcgrad", "nash_mtl", "graddrop", "samo", "f_mtl", "famo", "dwa", "moco", "uw+cagrad", "config"]
STOP = 2 * STEPS + 3  # in the middle of the third epoch


class Rows(Dataset):
    """Batches by their number in the epoch."""

    def __init__(self) -> None:
        inputs, targets = batch(size=8 * STEPS)
        self.rows = list(zip(inputs, *targets.values(), strict=True))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int):
        return self.rows[place]


class Save(pl.Callback):
    def on_train_batch_end(self, trainer, pl_module, outputs, data, batch_idx):
        if trainer.global_step == STOP:
            trainer.save_checkpoint(pl_module.folder / "middle.ckpt")


class Watched(Module):
    """Keeps the strategy's state and the weights after each step, and repeats every batch exactly on a resume.

    Lightning's loaders do not resume within an epoch, so the batch is looked up by the step.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self.seen: dict[int, tuple] = {}

    def task_losses(self, data):
        rows = list(Rows().rows)
        start = 8 * (self.global_step % STEPS)
        return super().task_losses([torch.stack(part) for part in zip(*rows[start : start + 8], strict=True)])

    def on_train_batch_end(self, outputs, data, batch_idx):
        [callback] = [c for c in self.trainer.callbacks if isinstance(c, MultiTaskBalancer)]
        balancer = callback.balancer
        self.seen[self.global_step] = (frozen(balancer.strategy.state_dict()), dict(balancer.weights))


@pytest.mark.parametrize("spec", SPECS)
def test_from_the_middle_of_an_epoch_the_strategy_goes_on_exactly(spec: str, tmp_path: Path) -> None:
    def run(module: Watched, *more: pl.Callback, **options) -> None:
        callbacks = [MultiTaskBalancer(spec), ConflictMonitor(2), TaskAffinity(5), *more]
        trainer(tmp_path, *callbacks, max_steps=4 * STEPS, max_epochs=-1).fit(
            module, DataLoader(Rows(), batch_size=8), **options
        )

    whole, resumed = Watched(tmp_path), Watched(tmp_path)
    run(whole, Save())
    torch.load(tmp_path / "middle.ckpt", weights_only=True)
    run(resumed, ckpt_path=tmp_path / "middle.ckpt")
    assert min(resumed.seen) == STOP + 1
    epoch_ends_elsewhere = spec == "dwa"  # it counts epochs, and Lightning begins the interrupted one anew
    for step, seen in resumed.seen.items():
        if step < 3 * STEPS or not epoch_ends_elsewhere:
            assert seen == whole.seen[step], step
    if not epoch_ends_elsewhere:
        assert_equal(state(resumed), state(whole))
