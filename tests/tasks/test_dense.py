"""Segmentation, depth and normals: their scores by hand, and against others' implementations."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from sklearn.metrics import f1_score, jaccard_score
from torch import Tensor
from torch.nn import functional as F

from mtobal.tasks import Depth, MultiLabel, Normals, Regression, Segmentation, Task


def scores(task: Task, output: Tensor, target: Tensor) -> dict[str, float]:
    values = {}
    for name, metric in task.metrics().items():
        metric.update(output, target)
        values[name] = metric.compute().item()
    return values


def test_mean_iou_agrees_with_scikit_learn() -> None:
    generator = torch.Generator().manual_seed(0)
    output = torch.randn(3, 5, 8, 9, generator=generator)
    target = torch.randint(-1, 5, (3, 8, 9), generator=generator)
    kept = target >= 0
    found = scores(Segmentation("s", num_classes=5), output, target)
    expected = jaccard_score(target[kept], output.argmax(1)[kept], average="macro")
    assert found["mean_iou"] == pytest.approx(expected)
    assert found["pixel_accuracy"] == pytest.approx((output.argmax(1) == target)[kept].float().mean().item())


def test_a_class_that_nobody_saw_is_left_out_of_mean_iou() -> None:
    output = F.one_hot(torch.tensor([[[0, 0, 1, 1]]]), 13).permute(0, 3, 1, 2).float()
    found = scores(Segmentation("s", num_classes=13), output, torch.tensor([[[0, 0, 1, 0]]]))
    assert found["mean_iou"] == pytest.approx((2 / 3 + 1 / 2) / 2)


def test_depth_errors_by_hand() -> None:
    output = torch.tensor([2.0, 3.0, 100.0]).view(1, 1, 1, 3)
    target = torch.tensor([1.0, 4.0, 0.0]).view(1, 1, 1, 3)
    assert scores(Depth("d"), output, target) == {"absolute_error": 1.0, "relative_error": (1.0 + 0.25) / 2}


def test_angles_by_hand() -> None:
    degrees = torch.tensor([0.0, 10.0, 20.0, 25.0, 90.0])
    output = torch.stack([degrees.deg2rad().sin(), torch.zeros(5), degrees.deg2rad().cos()])[None, :, None] * 3.0
    target = torch.tensor([0.0, 0.0, 1.0]).view(1, 3, 1, 1).expand(1, 3, 1, 5)
    found = scores(Normals("n"), output, target)
    assert found["mean_angle"] == pytest.approx(29.0, abs=0.01)
    assert found["median_angle"] == pytest.approx(20.0, abs=0.001)
    assert [found[f"within_{name}"] for name in ("11.25", "22.5", "30")] == pytest.approx([0.4, 0.6, 0.8])
    loss = Normals("n").loss(output, target).item()
    assert loss == pytest.approx(1 - degrees.deg2rad().cos().mean().item(), rel=1e-5)


def test_the_median_is_that_of_all_pixels() -> None:
    generator = torch.Generator().manual_seed(0)
    output, target = (torch.randn(4, 3, 20, 20, generator=generator) for _ in range(2))
    target = F.normalize(target, dim=1)
    angles = (F.normalize(output, dim=1) * target).sum(1).clamp(-1, 1).acos().rad2deg()
    assert scores(Normals("n"), output, target)["median_angle"] == pytest.approx(angles.median().item(), abs=1e-3)


def test_the_loss_of_normals_is_that_of_normalised_outputs() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(2, 3, 5, 6, generator=generator, dtype=torch.float64)
    target = F.normalize(torch.randn(2, 3, 5, 6, generator=generator, dtype=torch.float64), dim=1)
    target[:, :, 0] = 0
    values[0, :, 1] = 0  # an output without a direction
    values[0, :, 2] *= 1e-9
    kept = target.norm(dim=1) > 0
    found = []
    for normalised in (False, True):
        output = values.clone().requires_grad_()
        loss = (
            1 - (F.normalize(output, dim=1, eps=1e-12) * target).sum(1)[kept].mean()
            if normalised
            else Normals("n").loss(output, target)
        )
        found.append((loss.detach(), *torch.autograd.grad(loss, output)))
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, rtol=1e-12, atol=0)


def test_a_normal_whose_components_add_up_to_zero_has_a_label() -> None:
    target = torch.tensor([1.0, -1.0, 0.0]).view(1, 3, 1, 1) / math.sqrt(2)
    assert Normals("n").labelled(target).all()


def test_f1_agrees_with_scikit_learn_and_reads_small_logits_as_logits() -> None:
    generator = torch.Generator().manual_seed(0)
    output = 0.4 * torch.rand(50, 3, generator=generator)  # all above zero: a yes each
    output[::3] *= -1
    target = torch.randint(2, (50, 3), generator=generator)
    found = scores(MultiLabel("m", num_labels=3), output, target)
    assert found["f1"] == pytest.approx(f1_score(target, output > 0, average="macro"))
    assert found["accuracy"] == pytest.approx(((output > 0) == target).float().mean().item())


@pytest.mark.parametrize(
    ("criterion", "expected"), [("squared", 4.625), ("absolute", 1.75), ("smooth_l1", 1.3125)]
)
def test_the_criterion_of_a_regression_is_its_loss(criterion: Any, expected: float) -> None:
    task = Regression("mu", size=2, criterion=criterion)
    assert task.loss(torch.tensor([[0.5, 3.0]]), torch.zeros(1, 2)).item() == expected


def test_regression_is_told_in_the_units_outside() -> None:
    task = Regression("mu", unit=1000.0)
    assert scores(task, torch.tensor([[1.0], [2.0]]), torch.tensor([[1.5], [math.nan]])) == {"absolute_error": 500}
