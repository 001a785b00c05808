from __future__ import annotations

import pytest
import torch
from torch import Tensor

import mtobal
from mtobal import UsageError
from mtobal.strategies import Step, build
from mtobal.strategies.gradient.aligned_mtl import aligned_mtl_weights

MODES = ("min", "median", "mean")


def balance(gramian: Tensor, **options: object) -> Tensor:
    """The matrix B, one column a task."""
    return torch.stack(
        [aligned_mtl_weights(gramian, task, **options) for task in torch.eye(len(gramian)).double()], 1
    )


@pytest.mark.parametrize("scale_mode", MODES)
@pytest.mark.parametrize("spread", [0.0, 1.5, 3.0])
def test_aligned_gradients_are_orthogonal_and_of_one_length(scale_mode: str, spread: float) -> None:
    """Also where the norms span six orders of magnitude, and the eigenvalues of the Gramian twelve."""
    generator = torch.Generator().manual_seed(1)
    norms = torch.linspace(-spread, spread, 6, dtype=torch.float64)[:, None]
    rows = 10.0**norms * torch.randn(6, 12, generator=generator, dtype=torch.float64)
    gramian = rows @ rows.T
    aligned = balance(gramian, scale_mode=scale_mode) @ rows
    products = aligned @ aligned.T
    torch.testing.assert_close(products / products[0, 0], torch.eye(6).double(), rtol=0, atol=1e-9)


@pytest.mark.parametrize(("scale_mode", "position"), [("min", 0), ("median", 2), ("mean", None)])
def test_the_common_length_is_that_of_an_eigenvalue(scale_mode: str, position: int | None) -> None:
    generator = torch.Generator().manual_seed(2)
    rows = torch.randn(6, 12, generator=generator, dtype=torch.float64)
    values = torch.linalg.eigvalsh(rows @ rows.T)
    expected = values.mean() if position is None else values[position]
    aligned = balance(rows @ rows.T, scale_mode=scale_mode) @ rows
    torch.testing.assert_close((aligned @ aligned.T).diagonal(), expected.expand(6))


@pytest.mark.parametrize("scale_mode", MODES)
def test_dependent_rows_are_aligned_within_their_span(scale_mode: str) -> None:
    rows = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [1.0, 1.0]], dtype=torch.float64)
    aligned = balance(rows @ rows.T, scale_mode=scale_mode) @ rows
    values = torch.linalg.eigvalsh(aligned @ aligned.T)
    torch.testing.assert_close(values[:2], torch.zeros(2).double(), atol=1e-12, rtol=0)
    torch.testing.assert_close(values[2], values[3])


def test_zero_gradients_are_no_error() -> None:
    assert torch.equal(mtobal.weights(torch.zeros(3, 3), "aligned_mtl"), torch.ones(3))
    rows = torch.tensor([[1.0, 2.0], [0.0, 0.0], [3.0, 1.0]], dtype=torch.float64)
    found = mtobal.weights(rows @ rows.T, "aligned_mtl")
    torch.testing.assert_close(found[[0, 2]], mtobal.weights(rows[[0, 2]] @ rows[[0, 2]].T, "aligned_mtl"))
    assert abs(found[1]) < 1e-12


def test_the_precision_of_the_gradients_may_decide_the_rank() -> None:
    rows = torch.tensor([[1.0, 0.0], [1.0, 1e-5]], dtype=torch.float64)
    fine = mtobal.aggregate(rows, "aligned_mtl")
    coarse = mtobal.aggregate(rows, "aligned_mtl(eps=1.2e-7)")
    assert fine.norm() < 1e-4
    torch.testing.assert_close(coarse, torch.tensor([2.0, 0.0]).double(), atol=1e-4, rtol=0)


def test_a_preference_weighs_the_aligned_gradients() -> None:
    gramian = torch.diag(torch.tensor([1.0, 4.0, 9.0], dtype=torch.float64))
    strategy = build("aligned_mtl(preference={seg: 1, depth: 2, normal: 3})")
    step = Step(("seg", "depth", "normal"), (0, 2))
    weights = strategy.aggregation_weights(gramian[[0, 2]][:, [0, 2]], step, torch.ones(2).double())
    torch.testing.assert_close(weights, torch.tensor([1.0, 1.0]).double())


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("aligned_mtl(eps=0)", "eps must lie between 0 and 1"),
        ("aligned_mtl(preference=[-1, 1])", "the preference of aligned_mtl must be finite and at least 0"),
        ("aligned_mtl(scale_mode=rmse)", "scale_mode"),
    ],
)
def test_options_are_checked(spec: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build(spec)
