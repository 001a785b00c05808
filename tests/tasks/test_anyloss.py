from __future__ import annotations

import pytest
import torch

from mtobal import UsageError
from mtobal.tasks.anyloss import anyloss

SCORES = ["accuracy", "f_beta", "g_mean", "balanced_accuracy"]
every_score = pytest.mark.parametrize("score", SCORES)


@every_score
def test_of_sure_predictions_it_is_one_minus_the_score(score: str) -> None:
    predicted = torch.tensor([1.0, 1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0])
    targets = torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0])
    recall, specificity, precision = 2 / 3, 4 / 5, 2 / 3
    expected = {
        "accuracy": 6 / 8,
        "f_beta": 5 * precision * recall / (4 * precision + recall),
        "g_mean": (recall * specificity) ** 0.5,
        "balanced_accuracy": (recall + specificity) / 2,
    }
    found = anyloss(predicted, targets, score, beta=2.0)
    assert found.item() == pytest.approx(1 - expected[score], abs=1e-6)


@every_score
@pytest.mark.parametrize("targets", [[0, 0, 0], [1, 1, 1], [0, 1, -1], [1, -1, -1]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_missing_class_has_a_finite_loss_and_gradient(
    score: str, targets: list[int], dtype: torch.dtype
) -> None:
    for values in ([0.0, 1.0, 0.5], [1.0, 0.0, 0.2], [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]):
        probabilities = torch.tensor(values, dtype=dtype, requires_grad=True)
        loss = anyloss(probabilities, torch.tensor(targets), score)
        (gradient,) = torch.autograd.grad(loss, probabilities)
        assert 0 <= loss <= 1
        assert gradient.isfinite().all()


def test_samples_without_label_are_left_out() -> None:
    probabilities, targets = torch.rand(6), torch.tensor([1, 0, -1, 1, -1, 0])
    labelled = targets >= 0
    for score in SCORES:
        expected = anyloss(probabilities[labelled], targets[labelled], score)
        assert anyloss(probabilities, targets, score) == expected
    nothing = anyloss(probabilities.requires_grad_(), torch.full((6,), -1))
    assert nothing == 0
    assert not nothing.requires_grad


@every_score
def test_descending_it_improves_the_score(score: str) -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(200, 3, generator=generator, dtype=torch.float64)
    targets = (inputs[:, 0] + 0.5 * inputs[:, 1] > 1).double()
    weights = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([weights], lr=0.05)
    for _ in range(200):
        optimizer.zero_grad()
        loss = anyloss((inputs @ weights[:3] + weights[3]).sigmoid(), targets, score)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05


def test_shapes_must_match() -> None:
    with pytest.raises(UsageError, match=r"got shapes \(3, 1\) and \(3,\)"):
        anyloss(torch.rand(3, 1), torch.ones(3))
