"""Classification: its loss and metric with and without labels."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from mtobal.tasks import Classification

TASK = Classification("digit", num_classes=4)


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    output = torch.randn(6, 4, generator=generator, dtype=torch.float64).requires_grad_()
    return output, torch.tensor([0, 3, 1, 2, 2, 1])


def test_fully_labelled_loss_is_the_cross_entropy() -> None:
    output, target = batch()
    assert torch.allclose(TASK.loss(output, target), F.cross_entropy(output, target))


def test_a_missing_label_leaves_its_sample_out() -> None:
    output, target = batch()
    target[[1, 4]] = -1
    kept = [0, 2, 3, 5]
    loss = TASK.loss(output, target)
    assert torch.allclose(loss, F.cross_entropy(output[kept], target[kept]))
    (gradient,) = torch.autograd.grad(loss, output)
    assert (gradient[[1, 4]] == 0).all()
    assert (gradient[kept] != 0).any(dim=1).all()


def test_accuracy_counts_labelled_samples_alone() -> None:
    metric = TASK.metrics()["accuracy"]
    output = torch.eye(4)[[0, 1, 2, 3]] * 5
    metric.update(output, torch.tensor([0, 1, 3, -1]))
    assert metric.compute().item() == pytest.approx(2 / 3)
    assert metric.higher_is_better is True


def test_metrics_are_new_and_hold_the_main_one() -> None:
    first, second = TASK.metrics(), TASK.metrics()
    assert TASK.main_metric in first
    first["accuracy"].update(torch.eye(4), torch.arange(4))
    assert second["accuracy"]._update_count == 0


def test_the_head_has_one_output_a_class() -> None:
    assert TASK.out_features == 4
