"""Two thousand steps in which everything goes wrong now and then."""

from __future__ import annotations

import gc
import os
import random
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision

from fits import Module, loader, state, trainer
from mtobal.callbacks import ConflictMonitor, MultiTaskBalancer, TaskAffinity
from networks import TASKS, SharedNet

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning"),
    pytest.mark.filterwarnings("ignore:the .* of task .* is not finite:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended"),
]

STEPS, SESSIONS = 2000, 4


class Faulty(Module):
    """Draws its faults from a generator of its own, so that a failure can be had again."""

    def __init__(self, seed: int) -> None:
        super().__init__(SharedNet(dtype=torch.float32))
        self.random = random.Random(seed)
        self.faults: dict[str, int] = {}
        self.fault, self.tasks = "none", TASKS[:2]

    def on_train_batch_start(self, data, batch_idx):
        self.fault = self.random.choices(
            ["none", "missing", "two missing", "nan", "inf", "nan gradient", "zero", "all zero", "overflow"],
            [60, 8, 4, 3, 3, 3, 8, 3, 3],
        )[0]
        self.faults[self.fault] = self.faults.get(self.fault, 0) + 1
        self.tasks = self.random.sample(TASKS, 2)

    def task_losses(self, data):
        values = super().task_losses(data)
        one, other = self.tasks
        if self.fault in ("missing", "two missing"):
            values[one] = None
            if self.fault == "two missing":
                values[other] = None
        elif self.fault in ("nan", "inf"):
            values[one] = values[one] * float(self.fault)
        elif self.fault == "nan gradient":  # the derivative of a root at zero, times zero
            weight = self.net.encoder[0].weight
            values[one] = values[one] + (weight - weight).sqrt().sum()
        elif self.fault in ("zero", "all zero"):
            for task in TASKS if self.fault == "all zero" else (one,):
                values[task] = 0 * values[task] + 1
        elif self.fault == "overflow":  # finite, but not under the loss scale
            values = {task: 1e30 * loss for task, loss in values.items()}
        return values


class Weigh(pl.Callback):
    """Measures at the end of each session what the process holds."""

    def __init__(self) -> None:
        self.tensors: list[int] = []
        self.megabytes: list[float] = []

    def on_train_end(self, trainer, pl_module):
        gc.collect()
        self.tensors.append(sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects()))
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        self.megabytes.append(pages * os.sysconf("SC_PAGE_SIZE") / 1e6)


@pytest.mark.parametrize(
    ("spec", "options"),
    [
        ("uw+nash_mtl", {"nonfinite": "drop_task"}),
        ("samo+moco", {"gradients": "loop"}),
        ("famo", {"nonfinite": "drop_task"}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_it_goes_on(spec: str, options: dict, tmp_path: Path) -> None:
    weigh, checkpoint = Weigh(), None
    for session in range(SESSIONS):  # each saves where it stands, in the middle of an epoch, and the next goes on
        module = Faulty(session)
        callback = MultiTaskBalancer(spec, patience=50, **options)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8, growth_interval=5)
        made = trainer(
            tmp_path,
            callback,
            ConflictMonitor(every_n_steps=100),
            TaskAffinity(every_n_steps=100),
            weigh,
            max_epochs=-1,
            max_steps=(session + 1) * STEPS // SESSIONS,
            plugins=[MixedPrecision("16-mixed", "cpu", scaler=scaler)],
            gradient_clip_val=1.0,
        )
        made.fit(module, loader(dtype=torch.float32), ckpt_path=checkpoint)
        checkpoint = tmp_path / "last.ckpt"
        made.save_checkpoint(checkpoint)
        assert made.global_step == (session + 1) * STEPS // SESSIONS
        assert all(value.isfinite().all() for value in state(module).values())
        assert len(module.faults) == 9
        assert callback.balancer.guard.counts.keys() == set(TASKS)
        del module, callback, made, scaler
    # The first session warms up. Each later one keeps ten cosines more; a graph or a gradient that is kept in
    # every step would be hundreds of tensors.
    assert weigh.tensors[-1] <= weigh.tensors[0] + 60
    assert weigh.megabytes[-1] <= weigh.megabytes[0] + 20
