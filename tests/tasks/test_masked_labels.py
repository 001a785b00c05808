"""What holds for every task: missing labels cost nothing, and metrics do not depend on the batches."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from mtobal import Balancer
from mtobal.errors import UsageError
from mtobal.tasks import (
    Classification,
    Depth,
    MultiLabel,
    Normals,
    Reconstruction,
    Regression,
    Restoration,
    Segmentation,
    Task,
)

N, H, W = 6, 5, 7
TASKS: list[Task] = [
    Classification("classification", num_classes=4),
    Segmentation("segmentation", num_classes=4),
    Depth("depth"),
    Normals("normals"),
    MultiLabel("multi_label", num_labels=3),
    Regression("regression", size=2),
    Regression("regression", size=2, criterion="absolute"),
    Regression("regression", size=2, criterion="smooth_l1"),
    Reconstruction("reconstruction"),
    Restoration("restoration"),
]
DENSE = {
    "segmentation": (H, W),
    "depth": (1, H, W),
    **dict.fromkeys(("normals", "reconstruction", "restoration"), (3, H, W)),
}
SHAPES = {"classification": (), "multi_label": (3,), "regression": (2,), **DENSE}
NUMBERS = ("regression", "reconstruction", "restoration")
MISSING = {"depth": 0.0, "normals": 0.0, **dict.fromkeys(NUMBERS, math.nan)}


def batch(task: Task, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return an output and a target in which everything has a label."""
    generator = torch.Generator().manual_seed(seed)
    shape = (N, *SHAPES[task.name])
    if task.name in ("classification", "segmentation"):
        target = torch.randint(4, shape, generator=generator)
        output = torch.randn(N, 4, *shape[1:], generator=generator, dtype=torch.float64)
        return output.requires_grad_(), target
    output = torch.randn(shape, generator=generator, dtype=torch.float64)
    if task.name == "multi_label":
        return output.requires_grad_(), torch.randint(2, shape, generator=generator)
    target = torch.rand(shape, generator=generator, dtype=torch.float64) + 0.5
    if task.name == "normals":
        target = torch.nn.functional.normalize(target - 1, dim=1)
    return output.requires_grad_(), target


def without_labels(task: Task, target: Tensor, rows: list[int] | slice = slice(None)) -> Tensor:
    target = target.clone()
    target[rows] = MISSING.get(task.name, -1)
    return target


every_task = pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)


@every_task
def test_a_sample_without_labels_is_as_good_as_none(task: Task) -> None:
    output, target = batch(task)
    gone, kept = [1, 4], [0, 2, 3, 5]
    assert task.labelled(target).all()
    masked = without_labels(task, target, gone)
    assert not task.labelled(masked)[gone].any()
    loss = task.loss(output, masked)
    assert loss.item() == pytest.approx(task.loss(output[kept], target[kept]).item(), rel=1e-12)
    (gradient,) = torch.autograd.grad(loss, output)
    assert (gradient[gone] == 0).all()
    assert (gradient[kept] != 0).any()
    assert gradient.isfinite().all()


@every_task
def test_a_batch_without_labels_sits_the_step_out(task: Task) -> None:
    output, target = batch(task)
    shared = torch.nn.Linear(1, 1)
    loss = task.loss(output * shared.weight.double(), without_labels(task, target))
    assert loss.item() == 0
    assert not loss.requires_grad
    balancer = Balancer("mgda", tasks=[task.name, "other", "third"])
    other = shared(torch.ones(1, 1)).square().sum()
    balancer({task.name: loss, "other": other, "third": 2 * other}).backward()
    assert task.name not in balancer.weights or balancer.weights[task.name] == 0
    assert shared.weight.grad is not None


@every_task
@pytest.mark.parametrize("convention", ["metrics", "batch_metrics"])
def test_metrics_skip_missing_labels(task: Task, convention: str) -> None:
    output, target = batch(task)
    masked = without_labels(task, target, [0, 5])
    for name, metric in getattr(task, convention)().items():
        metric.update(output.detach(), masked)
        found = metric.compute().item()
        metric.reset()
        metric.update(output.detach()[1:5], target[1:5])
        assert found == pytest.approx(metric.compute().item(), rel=1e-5), name
        assert isinstance(metric.higher_is_better, bool)
    assert task.main_metric in task.metrics()


@every_task
def test_metrics_of_a_split_do_not_depend_on_its_batches(task: Task) -> None:
    output, target = batch(task)
    target = without_labels(task, target, [2])
    for name, metric in task.metrics().items():
        metric.update(output.detach(), target)
        whole = metric.compute().item()
        metric.reset()
        for rows in (slice(0, 1), slice(1, 3), slice(3, 6)):
            metric.update(output.detach()[rows], target[rows])
        assert metric.compute().item() == pytest.approx(whole, rel=1e-5), name


@every_task
def test_a_split_without_labels_has_no_score(task: Task) -> None:
    output, target = batch(task)
    for name, metric in task.metrics().items():
        for rows in (slice(None), slice(0)):  # the second is a batch of no samples
            metric.reset()
            metric.update(output.detach()[rows], without_labels(task, target)[rows])
            assert math.isnan(metric.compute()), name


@pytest.mark.parametrize("task", [task for task in TASKS if task.name in DENSE], ids=lambda task: task.name)
def test_more_pixels_than_a_half_can_count_do_not_overflow_it(task: Task) -> None:
    output, target = (each.detach().repeat(700, *[1] * (each.dim() - 1)) for each in batch(task))
    halves = [each.half() if each.is_floating_point() else each for each in (output, target)]
    exact = [each.double() if each.is_floating_point() else each for each in halves]
    assert task.loss(*halves).item() == pytest.approx(task.loss(*exact).item(), rel=1e-2)
    for name, metric in task.metrics().items():
        metric.update(*halves)
        found = metric.compute().item()
        metric.reset()
        metric.update(*exact)
        assert found == pytest.approx(metric.compute().item(), rel=1e-2), name


ERRORS = [Depth("depth"), Normals("normals"), Regression("regression", size=2), Reconstruction("reconstruction")]


@pytest.mark.parametrize("task", ERRORS, ids=lambda task: task.name)
def test_an_output_that_is_no_number_is_no_good_one(task: Task) -> None:
    output, target = batch(task)
    output = output.detach()
    output[3].fill_(math.nan)
    for convention in (task.metrics, task.batch_metrics):
        for name, metric in convention().items():
            for rows in (slice(0, 3), slice(3, 6)):
                metric.update(output[rows], target[rows])
            found = metric.compute().item()
            if name.startswith("within"):
                assert found <= 5 / 6, name
            else:
                assert math.isnan(found), name


@pytest.mark.parametrize("task", [Depth("depth"), Normals("normals")], ids=lambda task: task.name)
def test_older_papers_weigh_batches_alike(task: Task) -> None:
    output, target = batch(task)
    target = without_labels(task, target, [0, 1])
    parts = [slice(0, 3), slice(3, 6)]  # one and three samples with labels
    for name, metric in task.batch_metrics().items():
        alone = []
        for part in (*parts, slice(0, 2)):  # the last has no labels and does not count
            metric.update(output.detach()[part], target[part])
        for part in parts:
            single = task.metrics()[name]
            single.update(output.detach()[part], target[part])
            alone.append(single.compute().item())
        assert metric.compute().item() == pytest.approx(sum(alone) / 2, rel=1e-5), name


def test_an_output_of_another_shape_is_refused() -> None:
    task = Depth("depth")
    for use in (task.loss, task.metrics()["absolute_error"].update):
        with pytest.raises(UsageError, match=r"target of shape \(6, 5, 7\), got \(6, 6, 5, 7\)"):
            use(torch.zeros(6, 1, H, W), torch.ones(6, H, W))
