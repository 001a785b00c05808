"""The LightningModule: its losses, its evaluation, and the score that selects an epoch."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torchmetrics import Metric, SumMetric

from mtobal import data as data_sets
from mtobal import models
from mtobal.bench.module import MultiTaskModule
from mtobal.bench.recorder import selection_score
from mtobal.data import MultiTaskData, evaluation_loader
from mtobal.errors import UsageError
from mtobal.tasks import Classification


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


def test_the_selection_score_is_signed_and_nan_is_the_worst(module: MultiTaskModule) -> None:
    assert selection_score(module, {"left/accuracy": 0.5, "right/accuracy": 1.0}) == 0.75
    assert selection_score(module, {"left/accuracy": math.nan, "right/accuracy": 1.0}) == -math.inf
    left, right = module.metric_infos
    module.metric_infos = (left, dataclasses.replace(right, higher_is_better=False))
    assert selection_score(module, {"left/accuracy": 0.5, "right/accuracy": 1.0}) == -0.25


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
