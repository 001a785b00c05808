from __future__ import annotations

import csv
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.strategies import DDPStrategy

from fits import Module, assert_equal, fit, loader, state, trainer
from mtobal import UsageError
from mtobal.callbacks import ConflictMonitor, MultiTaskBalancer, conflict_monitor
from networks import TASKS, SharedNet

pytestmark = [
    pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning"),
    pytest.mark.filterwarnings("ignore:You are using .ddp_fork."),
]

LAYERS = {"net.encoder.0": ["0.weight", "0.bias"], "net.encoder.2": ["2.weight", "2.bias"]}


class Apart(Module):
    """Takes the gradients of each task by ordinary autograd, on a graph of its own, before each step."""

    def __init__(self) -> None:
        super().__init__()
        self.expected: list[dict[tuple[str, str, str], float]] = []

    def on_train_batch_start(self, data, batch_idx):
        rows = {}
        for task in TASKS:
            parameters = dict(self.net.encoder.named_parameters())
            found = torch.autograd.grad(self.task_losses(data)[task], list(parameters.values()))
            rows[task] = dict(zip(parameters, found, strict=True))
        cosines = {}
        for layer, names in LAYERS.items():
            units = {task: torch.cat([row[name].flatten() for name in names]) for task, row in rows.items()}
            for one, other in (("seg", "depth"), ("seg", "normal"), ("depth", "normal")):
                cosine = torch.cosine_similarity(units[one], units[other], dim=0)
                cosines[layer, one, other] = cosine.item()
        self.expected.append(cosines)


@pytest.mark.parametrize(
    ("spec", "gradients"),
    [
        ("ew", "auto"),
        ("uw", "auto"),
        ("famo", "auto"),
        ("pcgrad", "loop"),
        ("pcgrad", "ghost"),
        ("pcgrad", "batched"),
        ("pcgrad", "every(n=3)"),
        ("graddrop", "auto"),
        ("samo", "auto"),
    ],
)
def test_it_sees_the_cosines_and_changes_nothing(spec: str, gradients: str, tmp_path: Path) -> None:
    alone, watched = Module(), Apart()
    fit(tmp_path, alone, MultiTaskBalancer(spec, gradients=gradients))
    monitor = ConflictMonitor(every_n_steps=2)
    fit(tmp_path, watched, MultiTaskBalancer(spec, gradients=gradients), monitor)
    assert_equal(state(watched), state(alone))
    assert monitor.steps == [0, 2, 4, 6, 8, 10]
    records = monitor.records()
    assert len(records) == 6 * 2 * 3
    for record in records:
        key = (record["layer"], record["task"], record["other"])
        assert record["cosine"] == pytest.approx(watched.expected[record["step"]][key], abs=1e-6)


def test_the_order_of_the_callbacks_does_not_matter(tmp_path: Path) -> None:
    monitor = ConflictMonitor(every_n_steps=5)
    fit(tmp_path, Module(), monitor, MultiTaskBalancer("uw"))
    assert monitor.steps == [0, 5, 10]


def test_depth_joins_layers(tmp_path: Path) -> None:
    monitor = ConflictMonitor(every_n_steps=1, depth=2)
    fit(tmp_path, Module(), MultiTaskBalancer("ew"), monitor, max_epochs=1)
    layers, steps, rates = monitor.heat_map()
    assert layers == ["net.encoder"]
    assert steps == list(range(6))
    assert rates.shape == (1, 6)


def test_the_heat_map_is_the_records(tmp_path: Path) -> None:
    monitor = ConflictMonitor(every_n_steps=1)
    fit(tmp_path, Module(), MultiTaskBalancer("ew"), monitor)
    layers, steps, rates = monitor.heat_map()
    _, _, cosines = monitor.heat_map(("normal", "seg"))
    for row, layer in enumerate(layers):
        for column, step in enumerate(steps):
            found = [r for r in monitor.records() if (r["layer"], r["step"]) == (layer, step)]
            assert rates[row, column] == pytest.approx(sum(r["cosine"] < 0 for r in found) / 3)
            assert cosines[row, column] == next(
                r["cosine"] for r in found if (r["task"], r["other"]) == ("seg", "normal")
            )
    assert 0 < rates.mean() < 1
    with pytest.raises(UsageError, match="two of the tasks seg, depth, normal, not"):
        monitor.heat_map(("seg", "sky"))


def test_a_missing_task_and_a_zero_gradient_have_no_cosine(tmp_path: Path) -> None:
    class Missing(Module):
        def task_losses(self, data):
            values = super().task_losses(data)
            return {
                **values,
                "seg": None if self.global_step == 1 else values["seg"],
                "depth": 0 * values["depth"],
            }

    monitor = ConflictMonitor(every_n_steps=1)
    fit(tmp_path, Missing(), MultiTaskBalancer("uw"), monitor, max_epochs=1)
    pairs = {(record["step"], record["task"], record["other"]) for record in monitor.records()}
    assert pairs == {(step, "seg", "normal") for step in (0, 2, 3, 4, 5)}
    assert monitor.heat_map()[2][:, 1].isnan().all()


def test_of_accumulated_batches_it_looks_at_the_first(tmp_path: Path) -> None:
    watched, monitor = Apart(), ConflictMonitor(every_n_steps=1)
    fit(tmp_path, watched, MultiTaskBalancer("mgda"), monitor, max_epochs=1, accumulate_grad_batches=4)
    assert monitor.steps == [0, 1]
    for record in monitor.records():
        key = (record["layer"], record["task"], record["other"])
        assert record["cosine"] == pytest.approx(watched.expected[4 * record["step"]][key], abs=1e-6)


def test_it_is_logged(tmp_path: Path) -> None:
    logger, monitor = CSVLogger(tmp_path), ConflictMonitor(every_n_steps=1)
    fit(tmp_path, Module(), MultiTaskBalancer("uw"), monitor, logger=logger, log_every_n_steps=1)
    with (Path(logger.log_dir) / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["mtl/layer/net.encoder.0/conflict_rate"]]
    assert len(rows) == 12
    expected = [r["cosine"] for r in monitor.records() if r["layer"] == "net.encoder.2" and r["other"] == "depth"]
    assert [float(row["mtl/layer/net.encoder.2/cosine/seg/depth"]) for row in rows] == pytest.approx(expected)
    quiet = fit(tmp_path, Module(), MultiTaskBalancer("uw"), ConflictMonitor(every_n_steps=1, log=False))
    assert not [name for name in quiet.callback_metrics if "layer" in name]


def test_what_it_saw_is_in_the_checkpoint(tmp_path: Path) -> None:
    whole = ConflictMonitor(every_n_steps=4)
    fit(tmp_path, Module(), MultiTaskBalancer("uw"), whole, max_epochs=4)
    first = ConflictMonitor(every_n_steps=4)
    fit(tmp_path, Module(), MultiTaskBalancer("uw"), first).save_checkpoint(tmp_path / "half.ckpt")
    torch.load(tmp_path / "half.ckpt", weights_only=True)
    resumed = ConflictMonitor(every_n_steps=4)
    rest = trainer(tmp_path, MultiTaskBalancer("uw"), resumed, max_epochs=4)
    rest.fit(Module(), loader(), ckpt_path=tmp_path / "half.ckpt")
    assert resumed.steps == [0, 4, 8, 12, 16, 20]
    assert resumed.records() == whole.records()


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(conflict_monitor, "MOST_OBSERVATIONS", 6)
    monitor = ConflictMonitor(every_n_steps=1)
    fit(tmp_path, Module(), MultiTaskBalancer("ew"), monitor, max_epochs=3)
    assert monitor.steps == [0, 4, 8, 12, 16]


def test_two_ranks_see_the_cosines_of_the_averaged_gradients(tmp_path: Path) -> None:
    alone, together = ConflictMonitor(every_n_steps=3), ConflictMonitor(every_n_steps=3)
    ddp = DDPStrategy(start_method="fork", process_group_backend="gloo")
    keep = Keep(tmp_path)
    fit(tmp_path, Module(), MultiTaskBalancer("uw"), together, keep, strategy=ddp, devices=2)
    fit(tmp_path, Module(), MultiTaskBalancer("uw"), alone)
    one, other = (torch.load(tmp_path / str(rank)) for rank in range(2))
    assert one == other
    assert len(one) == len(alone.records()) == 4 * 2 * 3
    for ours, theirs in zip(one, alone.records(), strict=True):
        assert ours == {**theirs, "cosine": pytest.approx(theirs["cosine"], abs=1e-6)}


class Keep(pl.Callback):
    """Writes down what each rank saw."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_end(self, trainer, pl_module):
        [monitor] = [callback for callback in trainer.callbacks if isinstance(callback, ConflictMonitor)]
        torch.save(monitor.records(), self.folder / str(trainer.global_rank))


@pytest.mark.parametrize("scale", [1.0, 2.0**12])
def test_under_a_loss_scale_small_gradients_survive(scale: float, tmp_path: Path) -> None:
    class Small(Module):
        def task_losses(self, data):
            return {task: 1e-5 * loss for task, loss in super().task_losses(data).items()}

    single, half = ConflictMonitor(every_n_steps=6), ConflictMonitor(every_n_steps=6)
    module = Small(SharedNet(dtype=torch.float32))
    fit(tmp_path, module, MultiTaskBalancer("ew"), single, max_epochs=1)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    module = Small(SharedNet(dtype=torch.float32))
    plugin = MixedPrecision("16-mixed", "cpu", scaler=scaler)
    fit(tmp_path, module, MultiTaskBalancer("ew"), half, max_epochs=1, plugins=[plugin])
    worst = max(
        abs(ours["cosine"] - theirs["cosine"])
        for ours, theirs in zip(single.records(), half.records(), strict=True)
    )
    assert (worst < 0.02) is (scale > 1)


def test_layers_that_are_unfrozen_later_appear_later(tmp_path: Path) -> None:
    class Unfreeze(pl.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            pl_module.net.encoder[0].requires_grad_(trainer.current_epoch > 0)

    monitor = ConflictMonitor(every_n_steps=3)
    fit(tmp_path, Module(), MultiTaskBalancer("mgda"), monitor, Unfreeze())
    layers, steps, rates = monitor.heat_map()
    assert steps == [0, 3, 6, 9]
    assert rates[layers.index("net.encoder.0")].isnan().tolist() == [True, True, False, False]
    assert not rates[layers.index("net.encoder.2")].isnan().any()


def test_it_leaves_the_balancer_when_the_fit_ends(tmp_path: Path) -> None:
    class Broken(Module):
        def training_step(self, data, batch_idx):
            if batch_idx == 1:
                raise RuntimeError("from the user's code")
            return super().training_step(data, batch_idx)

    callback, monitor = MultiTaskBalancer("uw"), ConflictMonitor()
    with pytest.raises(RuntimeError, match="from the user's code"):
        fit(tmp_path, Broken(), callback, monitor)
    assert callback.balancer.observers == []
    fit(tmp_path, Module(), callback, monitor)
    assert callback.balancer.observers == []


def test_wrong_use_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="ConflictMonitor works beside MultiTaskBalancer"):
        fit(tmp_path, Module(), ConflictMonitor())
    with pytest.raises(UsageError, match="every_n_steps must be at least 1, not 0"):
        ConflictMonitor(every_n_steps=0)
    with pytest.raises(UsageError, match="depth must be at least 1, not 0"):
        ConflictMonitor(depth=0)
