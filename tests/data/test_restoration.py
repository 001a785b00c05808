"""Pictures to restore: the degradations against their formulas, determinism, and the score of a restoration."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from mtobal.data import InMemoryDataset, MultiTaskData, load, training_loader
from mtobal.data.multitask import BatchPerTask
from mtobal.data.restoration import add_noise, blur, lower_resolution
from mtobal.errors import UsageError
from mtobal.tasks import Restoration

SMALL = {"train_images": 5, "validation_images": 1, "test_images": 2, "height": 12, "width": 16}
TASKS = {"denoise", "super_resolve", "deblur"}


@pytest.fixture(scope="module")
def data() -> MultiTaskData:
    return load("restoration", **SMALL)


def part(data: MultiTaskData, task: str) -> InMemoryDataset:
    assert isinstance(data.train, BatchPerTask)
    found = data.train.parts[task]
    assert isinstance(found, InMemoryDataset)
    return found


def test_noise_is_normal() -> None:
    images = torch.full((1, 3, 200, 200), 0.5, dtype=torch.float64)
    noise = add_noise(images, 0.2, Generator().manual_seed(0)) - images
    assert abs(float(noise.mean())) < 0.005
    assert float(noise.std()) == pytest.approx(0.2, rel=0.01)


def test_a_blurred_point_is_a_gaussian() -> None:
    point = torch.zeros(1, 2, 15, 15, dtype=torch.float64)
    point[0, :, 7, 7] = 1.0
    spread = blur(point, 1.5)
    assert float(spread[0, 0].sum()) == pytest.approx(1.0)
    assert int((spread[0, 0] > 0).sum()) == 9**2  # three deviations to each side
    for row, column in ((7, 8), (9, 7), (5, 10)):
        distance = (row - 7) ** 2 + (column - 7) ** 2
        ratio = float(spread[0, 1, row, column] / spread[0, 1, 7, 7])
        assert ratio == pytest.approx(math.exp(-distance / (2 * 1.5**2)))


@pytest.mark.parametrize("degrade", [lambda x: blur(x, 1.0), lambda x: lower_resolution(x, 3)])
def test_nothing_is_lost_of_a_picture_of_one_colour(degrade: Any) -> None:
    image = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64).view(1, 3, 1, 1).expand(1, 3, 9, 12)
    torch.testing.assert_close(degrade(image), image)


def test_a_batch_holds_every_task(data: MultiTaskData) -> None:
    assert {task.name for task in data.tasks} == TASKS
    for inputs, targets in training_loader(data.train, batch_size=2, seed=0):
        assert isinstance(inputs, dict)
        assert inputs.keys() == targets.keys() == TASKS
        assert all(inputs[task].shape == targets[task].shape == (2, 3, 12, 16) for task in TASKS)
        assert not torch.equal(targets["denoise"], targets["deblur"])  # other pictures in every task


def test_inputs_are_degraded_targets(data: MultiTaskData) -> None:
    clean = part(data, "denoise").targets["denoise"]
    assert 0 <= clean.min() < clean.max() <= 1
    for task in TASKS:
        assert torch.equal(part(data, task).targets[task], clean)
    noise = part(data, "denoise").inputs - clean
    assert float(noise.std()) == pytest.approx(0.1, rel=0.1)
    assert not torch.allclose(noise[0], noise[1], atol=1e-3)
    assert torch.equal(part(data, "super_resolve").inputs, lower_resolution(clean, 2))
    assert torch.equal(part(data, "deblur").inputs, blur(clean, 1.5))


def test_pictures_depend_on_the_seed_and_not_on_how_many_there_are(data: MultiTaskData) -> None:
    fewer = load("restoration", **{**SMALL, "train_images": 2})
    other = load("restoration", **SMALL, seed=1)
    for task in TASKS:
        assert torch.equal(part(fewer, task).inputs, part(data, task).inputs[:2])
        assert not torch.equal(part(other, task).inputs, part(data, task).inputs)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train_images": 0}, "train_images should be at least 1, not 0"),
        ({"width": 15}, "multiples of factor 2, not 12 and 15"),
        ({"blur_radius": 4.0}, "less than a third of the picture, not 0.1 and 4.0"),
        ({"noise": -1.0}, "noise should not be negative"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load("restoration", **{**SMALL, **options})


def test_the_score_is_the_mean_ratio_of_the_pictures_that_are_known() -> None:
    task = Restoration("denoise")
    target = torch.full((3, 3, 2, 2), 0.5)
    output = target + torch.tensor([0.1, -0.01, 0.2]).view(3, 1, 1, 1)
    target[2, 0, 0, 0] = torch.nan
    metric = task.metrics()["psnr"]
    for row in range(3):  # as well as all at once
        metric.update(output[row : row + 1], target[row : row + 1])
    assert float(metric.compute()) == pytest.approx((20 + 40) / 2, abs=1e-3)
    assert float(task.loss(output, target)) == pytest.approx(0.055, abs=1e-6)
    assert task.labelled(target).tolist() == [True, True, False]
    gradient = _gradient(task, output, target)
    assert gradient[2].eq(0).all()
    assert gradient.isfinite().all()


def _gradient(task: Restoration, output: Tensor, target: Tensor) -> Tensor:
    leaf = output.clone().requires_grad_()
    task.loss(leaf, target).backward()  # type: ignore[no-untyped-call]
    assert leaf.grad is not None
    return leaf.grad
