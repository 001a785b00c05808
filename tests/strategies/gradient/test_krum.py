from __future__ import annotations

import pytest
import torch

import mtobal
from mtobal import UsageError
from mtobal.strategies import Step, build
from mtobal.strategies.gradient import Krum


def test_an_arbitrary_gradient_is_ignored() -> None:
    generator = torch.Generator().manual_seed(0)
    jacobian = 1.0 + 0.1 * torch.randn(6, 4, generator=generator, dtype=torch.float64)
    jacobian[4] = 1e9
    for spec in (
        "krum(n_byzantine=1)",
        "krum(n_byzantine=1, n_selected=3)",
        "krum(n_byzantine=1, distance=plain)",
    ):
        weights = mtobal.weights(jacobian @ jacobian.T, spec)
        assert weights[4] == 0
        assert weights.sum() == pytest.approx(1)
        assert (mtobal.aggregate(jacobian, spec) - 1).abs().max() < 0.5


def test_the_scores_are_those_of_the_paper() -> None:
    """Against the distances of the rows themselves, without the Gramian."""
    generator = torch.Generator().manual_seed(1)
    jacobian = torch.randn(8, 5, generator=generator, dtype=torch.float64)
    for distance, power in (("squared", 2), ("plain", 1)):
        distances = torch.cdist(jacobian, jacobian) ** power
        scores = distances.sort(dim=1).values[:, 1 : 8 - 2 - 2 + 1].sum(1)
        best = scores.argsort()[:3].sort().values
        weights = mtobal.weights(jacobian @ jacobian.T, f"krum(n_byzantine=2, n_selected=3, distance={distance})")
        assert weights.nonzero().flatten().tolist() == best.tolist()


def test_equal_scores_share_a_place() -> None:
    """Of three rows, the nearest two have the same score: their distance from each other."""
    jacobian = torch.tensor([[0.0, 1.0], [0.0, 2.0], [5.0, 0.0]], dtype=torch.float64)
    assert mtobal.weights(jacobian @ jacobian.T, "krum").tolist() == [0.5, 0.5, 0.0]
    equal = torch.ones(4, 4, dtype=torch.float64)
    assert mtobal.weights(equal, "krum(n_selected=3)").tolist() == [0.25] * 4


def test_too_few_tasks_for_a_neighbour_are_averaged() -> None:
    strategy = Krum(n_byzantine=1)
    step = Step(("a", "b", "c", "d"), (0, 3))
    assert strategy.weights(torch.eye(2, dtype=torch.float64), step).tolist() == [0.5, 0.5]
    assert mtobal.weights(torch.eye(1, dtype=torch.float64), "krum").tolist() == [1.0]


def test_wrong_use_is_refused() -> None:
    with pytest.raises(UsageError, match="needs at least 5 tasks"):
        mtobal.aggregate(torch.eye(4), "krum(n_byzantine=2)")
    with pytest.raises(UsageError, match="n_byzantine must not be negative"):
        build("krum(n_byzantine=-1)")
    with pytest.raises(UsageError, match="n_selected must be at least 1"):
        build("krum(n_selected=0)")
