"""What Lightning itself does, and its own callbacks, go on as if there were no balancer.

An aggregation with weights of one is the plain sum of the losses, and so every fit must equal one without the
balancer.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import (
    BaseFinetuning,
    EarlyStopping,
    EMAWeightAveraging,
    GradientAccumulationScheduler,
    ModelCheckpoint,
    StochasticWeightAveraging,
)
from lightning.pytorch.tuner import Tuner
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR

from fits import STEPS, Module, assert_close, fit, loader, state, trainer
from mtobal.callbacks import MultiTaskBalancer
from mtobal.strategies import Aggregation

pytestmark = [
    pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning"),
    pytest.mark.filterwarnings("ignore:Swapping scheduler:UserWarning"),
    pytest.mark.filterwarnings("ignore:no trainable parameter is shared:RuntimeWarning"),  # before unfreezing
]

SPECS = ["uw", "nash_mtl", "graddrop", "samo", "f_mtl", "famo"]


class Ones(Aggregation):
    def solve(self, gramian, step):
        return torch.ones(len(gramian), dtype=gramian.dtype)


class Scheduled(Module):
    """Two groups of parameters, each with a schedule of its own."""

    def __init__(self, schedule: str) -> None:
        super().__init__()
        self.schedule = schedule

    def configure_optimizers(self):
        groups = [
            {"params": self.net.encoder.parameters(), "lr": 0.02, "weight_decay": 0.1},
            {"params": self.net.heads.parameters(), "lr": 0.1},
        ]
        optimizer = torch.optim.AdamW(groups)
        if self.schedule == "lambda":
            schedule = LambdaLR(optimizer, [lambda step: 0.9**step, lambda step: 1 / (1 + step)])
        else:
            schedule = OneCycleLR(optimizer, [0.05, 0.1], total_steps=2 * STEPS)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Unfreezing(BaseFinetuning):
    """Trains the heads alone for an epoch."""

    def freeze_before_training(self, pl_module):
        self.freeze(pl_module.net.encoder)

    def finetune_function(self, pl_module, epoch, optimizer):
        if epoch == 1:
            self.unfreeze_and_add_param_group(pl_module.net.encoder, optimizer, lr=0.02)


class Own(Module):
    """Its optimizer holds what can be trained at the beginning."""

    def configure_optimizers(self):
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=0.05, momentum=0.9)


CASES: dict[str, tuple[Callable[[], Module], Callable[[], list[pl.Callback]], dict]] = {
    "plain": (Module, list, {}),
    "accumulation": (Module, list, {"accumulate_grad_batches": 4}),
    "clipping": (Module, list, {"gradient_clip_val": 0.05}),
    "clipping by value": (Module, list, {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"}),
    "LambdaLR": (lambda: Scheduled("lambda"), list, {}),
    "OneCycleLR": (lambda: Scheduled("one cycle"), list, {}),
    "anomaly detection": (Module, list, {"detect_anomaly": True}),
    "stochastic weight averaging": (Module, lambda: [StochasticWeightAveraging(0.01, 0.5)], {"max_epochs": 4}),
    "moving average": (Module, lambda: [EMAWeightAveraging(decay=0.9)], {}),
    "scheduled accumulation": (Module, lambda: [GradientAccumulationScheduler({0: 1, 1: 3})], {}),
    "unfreezing": (Own, lambda: [Unfreezing()], {}),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("spec", ["ew", "ones"])
def test_the_plain_sum_trains_as_without_balancer(spec: str, case: str, tmp_path: Path) -> None:
    module, callbacks, options = CASES[case]
    plain, balanced = module(), module()
    fit(tmp_path, plain, *callbacks(), **options)
    callback = MultiTaskBalancer(Ones() if spec == "ones" else spec)
    fit(tmp_path, balanced, callback, *callbacks(), **options)
    assert set(callback.balancer.weights.values()) == {1.0}
    assert_close(state(balanced), state(plain))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("spec", SPECS)
def test_every_place_trains(spec: str, case: str, tmp_path: Path) -> None:
    module, callbacks, options = CASES[case]
    balanced = module()
    before = state(balanced)
    fit(tmp_path, balanced, MultiTaskBalancer(spec), *callbacks(), **options)
    after = state(balanced)
    assert all(value.isfinite().all() for value in after.values())
    assert not torch.equal(after["net.encoder.0.weight"], before["net.encoder.0.weight"])


def test_after_unfreezing_the_encoder_is_shared(tmp_path: Path) -> None:
    seen: list[list[str]] = []

    class Watch(pl.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            seen.append(list(callback.balancer.partition.shared))

    callback = MultiTaskBalancer("pcgrad")
    with pytest.warns(RuntimeWarning, match="only task-own parameters are trained until frozen ones become"):
        fit(tmp_path, Own(), callback, Unfreezing(), Watch())
    assert seen[0] == []
    assert all(name.startswith("net.encoder.") for name in seen[1])
    assert len(seen[1]) == 4


@pytest.mark.parametrize("spec", ["uw", "nash_mtl"])
def test_early_stopping_and_checkpoints(spec: str, tmp_path: Path) -> None:
    stopping = EarlyStopping("val_loss", patience=1, min_delta=1e9)  # nothing is ever good enough
    checkpoint = ModelCheckpoint(tmp_path, monitor="val_loss", save_top_k=2, save_last=True)
    made = trainer(tmp_path, MultiTaskBalancer(spec), stopping, checkpoint, max_epochs=10)
    module = Module()
    made.fit(module, loader(), loader())
    assert made.current_epoch == stopping.stopped_epoch + 1 == 2
    saved = torch.load(checkpoint.best_model_path, weights_only=True)
    assert saved["callbacks"]["MultiTaskBalancer"]["spec"] == spec
    restored = Module.load_from_checkpoint(tmp_path / "last.ckpt", strict=True)
    assert_close(state(restored), state(module))


def test_the_learning_rate_finder_tries_the_balanced_loss(tmp_path: Path) -> None:
    def tried(*callbacks: pl.Callback) -> list[float]:
        module = Module()
        tuner = Tuner(trainer(tmp_path, *callbacks))
        found = tuner.lr_find(module, loader(), num_training=15, max_lr=0.5, update_attr=False)
        assert "training_step" not in vars(module)
        return found.results["loss"]

    plain = tried()
    assert tried(MultiTaskBalancer(Ones())) == pytest.approx(plain)
    assert tried(MultiTaskBalancer("nash_mtl")) != pytest.approx(plain)


@pytest.mark.parametrize("spec", ["uw", "dwa", "rlw+pcgrad", "nash_mtl", "moco", "config"])
def test_after_the_learning_rate_finder_training_begins_as_if_it_had_not_run(spec: str, tmp_path: Path) -> None:
    alone, tuned = Module(), Module()
    fit(tmp_path, alone, MultiTaskBalancer(spec))
    made = trainer(tmp_path, MultiTaskBalancer(spec))
    Tuner(made).lr_find(tuned, loader(), num_training=15, max_lr=0.5, update_attr=False)
    made.fit(tuned, loader())
    assert_close(state(tuned), state(alone))
