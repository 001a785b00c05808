"""ConFIG and IMTL-G: the same direction, at two lengths."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import mtobal


def jacobian(seed: int, tasks: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    scales = 10.0 ** (6 * torch.rand(tasks, 1, generator=generator, dtype=torch.float64) - 3)
    return scales * torch.randn(tasks, width, generator=generator, dtype=torch.float64)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), tasks=st.integers(2, 8))
def test_all_gradients_project_equally(seed: int, tasks: int) -> None:
    rows = jacobian(seed, tasks, 2 * tasks)
    units = rows / rows.norm(dim=1, keepdim=True)
    for spec in ("config", "imtl_g"):
        direction = mtobal.aggregate(rows, spec)
        projections = units @ direction
        assert projections.min() > 0
        torch.testing.assert_close(projections, projections[:1].expand(tasks), rtol=1e-9, atol=0)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), tasks=st.integers(2, 8), width=st.integers(1, 8))
def test_config_is_the_pseudo_inverse_of_the_unit_rows(seed: int, tasks: int, width: int) -> None:
    rows = jacobian(seed, tasks, width)
    rows[0] = 0.0
    units = torch.nan_to_num(rows / rows.norm(dim=1, keepdim=True))
    x = torch.linalg.pinv(units) @ torch.ones(tasks, dtype=torch.float64)
    expected = (rows @ x).sum() * x / x.dot(x) if x.norm() > 1e-8 else torch.zeros_like(x)
    torch.testing.assert_close(mtobal.aggregate(rows, "config"), expected, rtol=1e-7, atol=1e-7 * rows.norm())


@pytest.mark.parametrize("spec", ["config", "imtl_g"])
def test_two_opposite_gradients_give_no_direction(spec: str) -> None:
    rows = torch.tensor([[1.0, 2.0], [-2.0, -4.0]], dtype=torch.float64)
    assert torch.equal(mtobal.weights(rows @ rows.T, spec), torch.zeros(2, dtype=torch.float64))


@pytest.mark.parametrize("spec", ["config", "imtl_g"])
def test_a_zero_gradient_has_no_part_in_it(spec: str) -> None:
    rows = jacobian(0, 3, 5)
    with_zero = torch.cat([rows[:2], torch.zeros(1, 5, dtype=torch.float64), rows[2:]])
    found = mtobal.weights(with_zero @ with_zero.T, spec)
    assert found[2] == 0
    torch.testing.assert_close(found[[0, 1, 3]], mtobal.weights(rows @ rows.T, spec))


def test_imtl_g_never_points_uphill() -> None:
    generator = torch.Generator().manual_seed(0)
    turned = 0
    for _ in range(200):
        rows = torch.rand(3, 4, generator=generator, dtype=torch.float64)
        rows *= 10.0 ** (2 * torch.rand(3, 1, generator=generator, dtype=torch.float64))
        published = mtobal.aggregate(rows, "imtl_g(form=paper)")
        ours = mtobal.aggregate(rows, "imtl_g")
        assert (rows @ ours).min() > 0
        uphill = (rows @ published).sum() < 0
        turned += bool(uphill)
        torch.testing.assert_close(ours, -published if uphill else published, rtol=1e-6, atol=0)
    assert turned > 0


def test_published_readings_of_dependent_rows() -> None:
    rows = torch.tensor([[1.0, 2.0], [-2.0, -4.0]], dtype=torch.float64)
    gramian = rows @ rows.T
    torch.testing.assert_close(
        mtobal.weights(gramian, "imtl_g(form=paper)"), torch.tensor([2 / 3, 1 / 3]).double()
    )
    torch.testing.assert_close(mtobal.weights(gramian, "imtl_g(form=gramian)"), torch.tensor([-1.0, 2.0]).double())
    # More tasks than dimensions: the published direction is zero although all tasks could gain.
    rows = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], dtype=torch.float64)
    assert mtobal.aggregate(rows, "imtl_g(form=paper)").abs().max() < 1e-12
    assert (rows @ mtobal.aggregate(rows, "imtl_g")).min() > 0.1


@pytest.mark.parametrize("rows", [[[1.0, 2.0], [1.0, 2.0], [0.0, 1.0]], [[0.0, 0.0], [1.0, 2.0], [0.0, 1.0]]])
def test_where_the_published_form_is_singular_ours_is_taken(rows: list[list[float]]) -> None:
    jacobian = torch.tensor(rows, dtype=torch.float64)
    expected = mtobal.aggregate(jacobian, "imtl_g")
    torch.testing.assert_close(mtobal.aggregate(jacobian, "imtl_g(form=paper)"), expected)
