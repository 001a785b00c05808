from __future__ import annotations

import csv
import inspect
import warnings
from contextlib import nullcontext
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader, TensorDataset

import mtobal
from mtobal import Balancer, UsageError
from mtobal.callbacks import MultiTaskBalancer
from networks import TASKS, SharedNet, batch, losses

# Lightning's hints on workers and loaders, none of which matters to a loader of 32 rows.
pytestmark = pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning")

SPECS = ["ew", "uw", "pcgrad", "mgda", "uw+pcgrad"]


class Module(pl.LightningModule):
    """A plain LightningModule with three losses, as a user writes it."""

    def __init__(self, seed: int = 0, lr: float = 0.05) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = SharedNet(seed)
        self.seen_batch_idx: list[int] = []

    def training_step(self, data, batch_idx):
        self.seen_batch_idx.append(batch_idx)
        inputs, *targets = data
        values = losses(self.net, (inputs, dict(zip(TASKS, targets, strict=True))))
        total = sum(values.values())
        self.log("train_loss", total, on_epoch=True)
        return {"loss": total, "losses": values, "extra": 1}

    def validation_step(self, data, batch_idx):
        inputs, *targets = data
        values = losses(self.net, (inputs, dict(zip(TASKS, targets, strict=True))))
        self.log("val_loss", sum(values.values()))

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=self.hparams.lr, momentum=0.9)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)]


def loader(size: int = 32, batch_size: int = 8) -> DataLoader:
    inputs, targets = batch(size=size)
    return DataLoader(TensorDataset(inputs, *targets.values()), batch_size=batch_size)


def trainer(tmp_path, *callbacks: pl.Callback, **options) -> pl.Trainer:
    defaults = {
        "max_epochs": 2,
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": tmp_path,
    }
    return pl.Trainer(callbacks=list(callbacks), **{**defaults, **options})


def by_hand(spec: str, module: Module, epochs: int = 2, accumulate: int = 1, clip: float | None = None) -> Module:
    """The same training in a plain loop."""
    balancer = Balancer(spec, module)
    [optimizer], [scheduler] = module.configure_optimizers()
    for _ in range(epochs):
        batches = list(loader())
        for number, (inputs, *targets) in enumerate(batches):
            values = losses(module.net, (inputs, dict(zip(TASKS, targets, strict=True))))
            steps = (number + 1) % accumulate == 0 or number == len(batches) - 1
            with nullcontext() if steps else balancer.accumulating():
                (balancer(values) / accumulate).backward()
            if steps:
                if clip:
                    torch.nn.utils.clip_grad_norm_(module.parameters(), clip)
                optimizer.step()
                optimizer.zero_grad()
        scheduler.step()
    return module


def assert_same(one: pl.LightningModule, other: pl.LightningModule) -> None:
    for name, parameter in one.named_parameters():
        torch.testing.assert_close(parameter, other.get_parameter(name), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize(
    ("options", "plain"),
    [
        ({}, {}),
        ({"gradient_clip_val": 0.05}, {"clip": 0.05}),
        ({"accumulate_grad_batches": 2}, {"accumulate": 2}),
        ({"accumulate_grad_batches": 3}, {"accumulate": 3}),
    ],
    ids=["plain", "clipping", "accumulation", "ragged accumulation"],
)
def test_it_equals_a_plain_loop(spec: str, options: dict, plain: dict, tmp_path) -> None:
    module = Module()
    trainer(tmp_path, MultiTaskBalancer(spec), **options).fit(module, loader())
    assert_same(module, by_hand(spec, Module(), **plain))


@pytest.mark.parametrize("spec", SPECS)
def test_a_resumed_run_equals_an_uninterrupted_one(spec: str, tmp_path) -> None:
    whole = Module()
    trainer(tmp_path, MultiTaskBalancer(spec), max_epochs=4).fit(whole, loader())

    half = trainer(tmp_path, MultiTaskBalancer(spec), max_epochs=2)
    half.fit(Module(), loader())
    half.save_checkpoint(tmp_path / "half.ckpt")
    torch.load(tmp_path / "half.ckpt", weights_only=True)  # nothing in it needs to be unpickled
    resumed = Module(seed=3)
    trainer(tmp_path, MultiTaskBalancer(spec), max_epochs=4).fit(
        resumed, loader(), ckpt_path=tmp_path / "half.ckpt"
    )
    for name, parameter in whole.named_parameters():
        assert torch.equal(parameter, resumed.get_parameter(name)), name


def test_the_module_is_given_back_as_it_was(tmp_path) -> None:
    module = Module()
    trainer(tmp_path, MultiTaskBalancer("uw")).fit(module, loader())
    assert "training_step" not in vars(module)
    assert inspect.getfullargspec(module.training_step).args == ["self", "data", "batch_idx"]
    assert module.seen_batch_idx == [0, 1, 2, 3] * 2


def test_the_module_is_given_back_after_an_exception(tmp_path) -> None:
    class Broken(Module):
        def training_step(self, data, batch_idx):
            if batch_idx == 1:
                raise RuntimeError("from the user's code")
            return super().training_step(data, batch_idx)

    module = Broken()
    with pytest.raises(RuntimeError, match="from the user's code"):
        trainer(tmp_path, MultiTaskBalancer("pcgrad")).fit(module, loader())
    assert "training_step" not in vars(module)


def test_a_users_own_training_step_attribute_survives(tmp_path) -> None:
    module = Module()
    mine = module.training_step
    module.training_step = lambda data, batch_idx: mine(data, batch_idx)
    before = module.training_step
    trainer(tmp_path, MultiTaskBalancer("ew")).fit(module, loader())
    assert module.training_step is before


def test_a_skipped_batch_passes_through(tmp_path) -> None:
    class Skipping(Module):
        def training_step(self, data, batch_idx):
            output = super().training_step(data, batch_idx)
            return None if batch_idx == 1 else output

    callback = MultiTaskBalancer("uw+pcgrad")
    with pytest.warns(UserWarning, match="returned `None`"):
        trainer(tmp_path, callback).fit(Skipping(), loader())
    assert set(callback.balancer.weights) == set(TASKS)


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (lambda output: output["loss"], "not a tensor"),
        (lambda output: {"loss": output["loss"]}, "not a mapping with 'loss'"),
        (lambda output: {"losses": output["losses"]}, "not a mapping with 'losses'"),
        (lambda output: {**output, "losses": list(output["losses"].values())}, "not a list"),
    ],
)
def test_a_step_without_losses_is_refused(output, message: str, tmp_path) -> None:
    class Wrong(Module):
        def training_step(self, data, batch_idx):
            return output(super().training_step(data, batch_idx))

    with pytest.raises(UsageError, match=message):
        trainer(tmp_path, MultiTaskBalancer("ew")).fit(Wrong(), loader())


@pytest.mark.parametrize("more", [lambda total: total / 2, lambda total: total + 1.0, float])
def test_a_total_that_is_not_the_sum_of_the_losses_is_pointed_out(more, tmp_path) -> None:
    """Whoever adds a penalty to the total would never learn that it is not trained on."""

    class Total(Module):
        def training_step(self, data, batch_idx):
            output = super().training_step(data, batch_idx)
            return {**output, "loss": more(output["loss"].detach())}

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer(tmp_path, MultiTaskBalancer("ew")).fit(Total(), loader())
    found = [str(warning.message) for warning in caught if "its losses add up to" in str(warning.message)]
    assert len(found) == (0 if more is float else 1)


def test_manual_optimization_is_refused_with_a_hint(tmp_path) -> None:
    class Manual(Module):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

    with pytest.raises(UsageError, match=r"self.manual_backward\(balancer\(losses\)\)"):
        trainer(tmp_path, MultiTaskBalancer("ew")).fit(Manual(), loader())


def test_two_balancers_are_refused(tmp_path) -> None:
    with pytest.raises(RuntimeError, match="more than one stateful callback"):
        trainer(tmp_path, MultiTaskBalancer("ew"), MultiTaskBalancer("pcgrad")).fit(Module(), loader())


def test_a_wrong_spec_is_refused_before_any_training() -> None:
    with pytest.raises(UsageError, match="did you mean 'pcgrad'"):
        MultiTaskBalancer("pcgard")


def test_weights_and_losses_are_logged(tmp_path) -> None:
    logger = CSVLogger(tmp_path)
    callback = MultiTaskBalancer("uw+mgda")
    fit = trainer(tmp_path, callback, logger=logger, log_every_n_steps=1)
    fit.fit(Module(), loader())
    with (Path(logger.log_dir) / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["mtl/weight/seg"]]
    assert len(rows) == 8
    for task in TASKS:
        assert float(rows[-1][f"mtl/weight/{task}"]) == pytest.approx(callback.balancer.weights[task])
        assert float(rows[-1][f"mtl/loss/{task}"]) == pytest.approx(callback.balancer.losses[task])


def test_logging_can_be_switched_off_and_barebones_works(tmp_path) -> None:
    fit = trainer(tmp_path, MultiTaskBalancer("uw", log=False), log_every_n_steps=1)
    fit.fit(Module(), loader())
    assert not [name for name in fit.callback_metrics if name.startswith("mtl/")]
    bare = pl.Trainer(barebones=True, max_epochs=1, accelerator="cpu", callbacks=[MultiTaskBalancer("pcgrad")])
    with pytest.warns(UserWarning, match="You are trying to `self.log"):  # of the module's own logging
        bare.fit(Module(), loader())


def test_learned_weights_leave_the_module_and_its_checkpoint_alone(tmp_path) -> None:
    checkpoint = ModelCheckpoint(tmp_path, save_last=True)
    module = Module()
    trainer(tmp_path, MultiTaskBalancer("uw"), checkpoint).fit(module, loader(), loader())
    restored = Module.load_from_checkpoint(tmp_path / "last.ckpt", strict=True)
    assert_same(module, restored)
    assert set(restored.state_dict()) == set(Module().state_dict())


def test_a_second_fit_continues_and_another_module_starts_with_fresh_parameters(tmp_path) -> None:
    callback = MultiTaskBalancer("uw+pcgrad")
    fit = trainer(tmp_path, callback, EarlyStopping("val_loss", patience=10))
    module = Module()
    fit.fit(module, loader(), loader())
    first = callback.balancer
    fit.fit_loop.max_epochs = 3
    fit.fit(module, loader(), loader())
    assert callback.balancer is first
    trainer(tmp_path, callback).fit(Module(seed=1), loader())
    assert callback.balancer is not first


def test_evaluation_needs_no_balancer(tmp_path) -> None:
    module = Module()
    fit = trainer(tmp_path, MultiTaskBalancer("mgda"))
    fit.fit(module, loader())
    fit.validate(module, loader(), verbose=False)
    trainer(tmp_path, MultiTaskBalancer("mgda")).validate(module, loader(), verbose=False)


def test_shared_parameters_are_named_by_dotted_paths(tmp_path) -> None:
    callback = MultiTaskBalancer("mgda", shared="net.encoder")
    trainer(tmp_path, callback).fit(Module(), loader())
    assert all(name.startswith("net.encoder.") for name in callback.balancer.partition.shared)


def test_it_is_found_on_the_package() -> None:
    assert mtobal.callbacks.MultiTaskBalancer is MultiTaskBalancer
