"""The LightningModule: its losses, its evaluation, and the score that selects an epoch."""

from __future__ import annotations

import copy
import dataclasses
import math
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchmetrics import Metric, SumMetric

from mtobal import data as data_sets
from mtobal import models
from mtobal.bench.module import MultiTaskModule
from mtobal.bench.scores import mean_main_metric
from mtobal.callbacks import MultiTaskBalancer
from mtobal.data import Batch, InMemoryDataset, MultiTaskData, evaluation_loader, training_loader
from mtobal.data.multitask import BatchPerTask
from mtobal.errors import UsageError
from mtobal.models.base import Inputs
from mtobal.models.hard_sharing import HardSharing
from mtobal.tasks import Classification


def fit(module: MultiTaskModule, loader: DataLoader[Batch], data: MultiTaskData, strategy: str) -> None:
    pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        barebones=True,
        callbacks=[MultiTaskBalancer(strategy, log=False)],
    ).fit(module, loader, evaluation_loader(data.validation))


@pytest.fixture(scope="module")
def data() -> MultiTaskData:
    return data_sets.load("digits", train_pairs=50, validation_pairs=60, test_pairs=10)


@pytest.fixture
def module(data: MultiTaskData) -> MultiTaskModule:
    torch.manual_seed(0)
    return MultiTaskModule(models.build("hard_sharing", data.input_shape, data.tasks), data.tasks, 0.1)


def test_the_training_loss_is_the_sum_of_the_task_losses(module: MultiTaskModule, data: MultiTaskData) -> None:
    inputs, targets = data.train[torch.arange(50)]
    step = module.training_step((inputs, targets))
    outputs = module.model(inputs)
    for task in data.tasks:
        assert torch.equal(step["losses"][task.name], task.loss(outputs[task.name], targets[task.name]))
    assert torch.equal(step["loss"], step["losses"]["left"] + step["losses"]["right"])


@pytest.mark.parametrize("batch_size", [60, 7])
def test_evaluation_is_that_of_the_whole_split(
    module: MultiTaskModule, data: MultiTaskData, batch_size: int
) -> None:
    inputs, targets = data.validation[torch.arange(60)]
    with torch.no_grad():
        outputs = module.model(inputs)
        for split in (data.train, data.validation):  # the second evaluation forgets the first
            module.on_validation_epoch_start()
            for batch in evaluation_loader(split, batch_size):
                module.validation_step(batch)
    losses, metrics = module.evaluation()
    for task in data.tasks:
        target = targets[task.name]
        assert losses[task.name] == pytest.approx(task.loss(outputs[task.name], target).item(), rel=1e-5)
        right = (outputs[task.name].argmax(1) == target).float().mean().item()
        assert metrics[f"{task.name}/accuracy"] == pytest.approx(right)


def test_a_baseline_reads_its_own_task_alone(data: MultiTaskData) -> None:
    module = MultiTaskModule(models.build("hard_sharing", data.input_shape, data.tasks[1:]), data.tasks[1:], 0.1)
    step = module.training_step(data.train[torch.arange(50)])
    assert step["losses"].keys() == {"right"}
    assert [info.name for info in module.metric_infos] == ["right/accuracy"]


@pytest.mark.parametrize("strategy", ["mgda_ub", "rep_mtl", "uw+aligned_mtl_ub"])
def test_strategies_read_the_representation_and_training_differs_by_it(
    strategy: str, module: MultiTaskModule, data: MultiTaskData
) -> None:
    trained = []
    for spec in (strategy, "ew"):
        copied = copy.deepcopy(module)
        fit(copied, training_loader(data.train, 25, seed=0), data, spec)
        trained.append(torch.cat([parameter.detach().flatten() for parameter in copied.model.parameters()]))
    assert trained[0].isfinite().all()
    assert not torch.allclose(*trained)


@pytest.mark.parametrize("strategy", ["mgda_ub", "rep_mtl"])
def test_a_representation_of_each_task_is_refused_where_one_is_compared(
    strategy: str, module: MultiTaskModule, data: MultiTaskData
) -> None:
    assert isinstance(data.train, InMemoryDataset)
    parts = {
        task: InMemoryDataset(data.train.inputs, {task: data.train.targets[task]}) for task in ("left", "right")
    }
    loader = training_loader(BatchPerTask(parts), 25, seed=0)
    with pytest.raises(UsageError, match=rf"'{strategy}' compares .* \(HardSharing on these data\)") as caught:
        fit(module, loader, data, strategy)
    assert "\n" not in str(caught.value)
    fit(module, loader, data, "cagrad")


class Penalised(HardSharing):
    def penalty(self, inputs: Inputs) -> dict[str, Tensor]:
        assert isinstance(inputs, Tensor)
        return {"left": self.decoders["left"].weight.square().sum() * len(inputs)}


def test_strategies_that_revise_their_weights_see_the_validation_losses(data: MultiTaskData) -> None:
    torch.manual_seed(0)
    module = MultiTaskModule(models.build("hard_sharing", data.input_shape, data.tasks), data.tasks, 0.001)
    callback = MultiTaskBalancer("visatb_online", log=False)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = pl.Trainer(
        max_epochs=2, accelerator="cpu", enable_model_summary=False, callbacks=[callback], **quiet
    )
    trainer.fit(module, training_loader(data.train, 25, 0), evaluation_loader(data.validation))
    assert callback.balancer is not None
    losses, _ = module.evaluation()
    seen = callback.balancer.strategy.revision.last
    torch.testing.assert_close(seen, torch.tensor(list(losses.values()), dtype=torch.float64))


class Epochs(HardSharing):
    """Notes the epochs that it is told."""

    def __init__(self, data: MultiTaskData) -> None:
        super().__init__(nn.Flatten(), {task.name: nn.LazyLinear(10) for task in data.tasks})
        self.told: list[tuple[int, int]] = []

    def start_epoch(self, epoch: int, epochs: int) -> None:
        self.told.append((epoch, epochs))


def test_a_model_is_told_each_epoch_once(data: MultiTaskData) -> None:
    model = Epochs(data)
    model(data.train[torch.arange(2)][0])
    trainer = pl.Trainer(max_epochs=3, accelerator="cpu", barebones=True)
    module = MultiTaskModule(model, data.tasks, 0.01)
    trainer.fit(module, training_loader(data.train, 25, 0), evaluation_loader(data.validation))
    assert model.told == [(0, 3), (1, 3), (2, 3)]


def test_a_penalty_belongs_to_the_loss_of_its_task_in_training_alone(data: MultiTaskData) -> None:
    torch.manual_seed(0)
    heads = {task.name: nn.Linear(144, 10) for task in data.tasks}
    plain, penalised = (
        MultiTaskModule(network(nn.Flatten(), heads), data.tasks, 0.1) for network in (HardSharing, Penalised)
    )
    inputs, targets = data.train[torch.arange(50)]
    penalty = 50 * heads["left"].weight.square().sum()
    steps = [module.training_step((inputs, targets)) for module in (plain, penalised)]
    assert torch.allclose(steps[1]["losses"]["left"], steps[0]["losses"]["left"] + penalty)
    assert torch.equal(steps[1]["losses"]["right"], steps[0]["losses"]["right"])
    assert torch.allclose(steps[1]["loss"], steps[0]["loss"] + penalty)
    missing = {**targets, "left": torch.full_like(targets["left"], -1)}
    assert penalised.training_step((inputs, missing))["losses"]["left"] is None
    for module in (plain, penalised):
        module.on_validation_epoch_start()
        with torch.no_grad():
            module.validation_step((inputs, targets))
    assert plain.evaluation() == penalised.evaluation()


def test_the_selection_score_is_signed_and_nan_is_the_worst(module: MultiTaskModule) -> None:
    tasks, infos = module.tasks, module.metric_infos
    assert mean_main_metric(tasks, infos, {"left/accuracy": 0.5, "right/accuracy": 1.0}) == 0.75
    assert mean_main_metric(tasks, infos, {"left/accuracy": math.nan, "right/accuracy": 1.0}) == -math.inf
    left, right = infos
    falling = (left, dataclasses.replace(right, higher_is_better=False))
    assert mean_main_metric(tasks, falling, {"left/accuracy": 0.5, "right/accuracy": 1.0}) == -0.25


def test_a_task_without_labels_sits_the_step_out(module: MultiTaskModule, data: MultiTaskData) -> None:
    inputs, targets = data.train[torch.arange(50)]
    missing = torch.full_like(targets["left"], -1)
    step = module.training_step((inputs, {**targets, "left": missing}))
    assert step is not None
    assert step["losses"]["left"] is None
    assert torch.equal(step["loss"], step["losses"]["right"])
    assert module.training_step((inputs, {"left": missing, "right": missing})) is None
    step = module.training_step((inputs, {"right": targets["right"]}))
    assert step is not None
    assert step["losses"].keys() == {"right"}


def test_evaluation_weighs_batches_by_their_labels(module: MultiTaskModule, data: MultiTaskData) -> None:
    inputs, targets = data.validation[torch.arange(60)]
    targets["left"][:25] = -1
    module.on_validation_epoch_start()
    with torch.no_grad():
        outputs = module.model(inputs)
        for rows in (slice(0, 20), slice(20, 30), slice(30, 60)):  # without labels, half of them, all
            module.validation_step((inputs[rows], {task: target[rows] for task, target in targets.items()}))
    losses, metrics = module.evaluation()
    assert losses["left"] == pytest.approx(data.tasks[0].loss(outputs["left"], targets["left"]).item(), rel=1e-5)
    right = (outputs["left"].argmax(1) == targets["left"])[25:].float().mean().item()
    assert metrics["left/accuracy"] == pytest.approx(right)


def test_the_learning_rate_falls_in_steps(data: MultiTaskData) -> None:
    model = models.build("hard_sharing", data.input_shape, data.tasks)
    module = MultiTaskModule(model, data.tasks, 0.1, weight_decay=0.01, decay_epochs=2, decay_factor=0.5)
    (optimizer,), (schedule,) = module.configure_optimizers()  # type: ignore[misc]
    rates = []
    for _ in range(5):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([0.1, 0.1, 0.05, 0.05, 0.025])
    assert optimizer.param_groups[0]["weight_decay"] == 0.01


def test_the_learning_rate_falls_when_validation_stops_to_improve(data: MultiTaskData) -> None:
    torch.manual_seed(0)
    rates: dict[str, list[float]] = {}
    saved: dict[str, Any] = {}
    model = models.build("hard_sharing", data.input_shape, data.tasks)
    for run in ("whole", "resumed"):
        module = MultiTaskModule(model, data.tasks, 1.0, decay_factor=0.1, decay_patience=1)
        if run == "resumed":
            module.on_load_checkpoint(saved)
        optimizer = module.configure_optimizers()
        assert isinstance(optimizer, torch.optim.Adam)
        if run == "resumed":
            optimizer.load_state_dict(saved["optimizer"])
        rates[run] = []
        for epoch, loss in enumerate((3.0, 2.0, 4.0, 2.5, 1.0, 1.5, 1.6, 1.7, 1.8, 1.9, 1.9)):
            if run == "resumed" and epoch < 6:
                continue
            module.on_validation_epoch_start()
            for task in data.tasks:
                module._loss_sums[task.name] += loss
                module._label_counts[task.name] += 1
            module.on_train_epoch_end()
            rates[run].append(optimizer.param_groups[0]["lr"])
            if run == "whole" and epoch == 5:
                saved = {"optimizer": copy.deepcopy(optimizer.state_dict())}
                module.on_save_checkpoint(saved)
                saved = copy.deepcopy(saved)
    # Twice without an improvement, and never below a hundredth.
    assert rates["whole"] == pytest.approx([1, 1, 1, 0.1, 0.1, 0.1, 0.01, 0.01, 0.01, 0.01, 0.01])
    assert rates["resumed"] == rates["whole"][6:]


def test_dense_tasks_are_evaluated_in_either_convention() -> None:
    rooms = data_sets.load("rooms", train_scenes=1, validation_scenes=3, test_scenes=1, height=16, width=24)
    torch.manual_seed(0)
    model = models.build("deeplab", rooms.input_shape, rooms.tasks, depth=18, width=4, decoder_channels=4)
    found = {}
    for batch_metrics in (False, True):
        module = MultiTaskModule(model.eval(), rooms.tasks, 0.1, batch_metrics=batch_metrics)
        module.on_validation_epoch_start()
        with torch.no_grad():
            for batch in evaluation_loader(rooms.validation, 2):
                module.validation_step(batch)
        losses, metrics = module.evaluation()
        assert all(math.isfinite(value) for value in (*losses.values(), *metrics.values()))
        found[batch_metrics] = metrics
    assert list(found[False]) == [
        *("segmentation/mean_iou", "segmentation/pixel_accuracy", "depth/absolute_error", "depth/relative_error"),
        *("normals/mean_angle", "normals/median_angle"),
        *("normals/within_11.25", "normals/within_22.5", "normals/within_30"),
    ]
    differing = {name for name, value in found[False].items() if value != found[True][name]}
    assert "normals/median_angle" in differing
    assert not any(name.startswith("segmentation") for name in differing)


def test_a_metric_without_a_direction_is_refused(data: MultiTaskData) -> None:
    class Undirected(Classification):
        def metrics(self) -> dict[str, Metric]:
            return {"accuracy": SumMetric()}

    tasks = [Undirected("left", num_classes=10)]
    with pytest.raises(UsageError, match=r"'left/accuracy' \(SumMetric\) does not say whether higher is better"):
        MultiTaskModule(models.build("hard_sharing", data.input_shape, tasks), tasks, 0.1)
