from __future__ import annotations

import pytest
import torch

import mtobal
from mtobal import UsageError


def test_a_composition_multiplies_its_weights() -> None:
    """(L, G) becomes (lambda L, diag(lambda) G diag(lambda)), and the gradient sum lambda_k w_k g_k."""
    generator = torch.Generator().manual_seed(0)
    jacobian = torch.randn(3, 7, generator=generator, dtype=torch.float64)
    scales = torch.tensor([2.0, 0.5, 3.0], dtype=torch.float64)
    composed = mtobal.aggregate(jacobian, "static(weights=[2.0, 0.5, 3.0])+mgda")
    torch.testing.assert_close(composed, mtobal.aggregate(scales[:, None] * jacobian, "mgda"))


def test_the_losses_are_weighted_before_the_aggregation_reads_them() -> None:
    jacobian = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    losses = torch.tensor([1.0, 4.0], dtype=torch.float64)
    found = mtobal.aggregate(jacobian, "static(weights=[4.0, 1.0])+mgda(normalization=loss)", losses)
    expected = mtobal.aggregate(
        torch.tensor([[4.0, 0.0], [0.0, 1.0]], dtype=torch.float64), "mgda(normalization=loss)", [4.0, 4.0]
    )
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("spec", ["ew", "mgda", "pcgrad", "mgda(normalization=l2)"])
def test_the_result_has_the_type_of_the_input(spec: str, dtype: torch.dtype) -> None:
    jacobian = torch.tensor([[1.0, 2.0, -1.0], [-2.0, 0.5, 0.25]], dtype=dtype)
    found = mtobal.aggregate(jacobian, spec)
    assert found.dtype == dtype
    exact = mtobal.aggregate(jacobian.double(), spec)
    torch.testing.assert_close(found.double(), exact, rtol=0.02, atol=0.02)
    assert mtobal.weights(jacobian @ jacobian.T, spec).dtype == dtype


def test_a_single_task_is_followed() -> None:
    row = torch.tensor([[1.0, -2.0]])
    for spec in ("ew", "mgda", "pcgrad", "mgda(normalization=l2, apply_to=raw)"):
        torch.testing.assert_close(mtobal.aggregate(row, spec), row[0])


@pytest.mark.parametrize(
    ("jacobian", "options", "message"),
    [
        (torch.ones(3), {}, "one row a task"),
        (torch.ones(0, 3), {}, "one row a task"),
        (torch.ones(2, 3, dtype=torch.int64), {}, "floating-point"),
        ([[1.0]], {}, "not list"),
        (torch.tensor([[1.0, 2.0], [float("nan"), 0.0]]), {}, "in row 1"),
        (torch.tensor([[float("inf"), 2.0], [1.0, 0.0]]), {}, "in row 0"),
        (torch.ones(2, 3), {"losses": [1.0]}, "expected 2 losses"),
        (torch.ones(2, 3), {"losses": [1.0, float("nan")]}, "must be finite"),
    ],
)
def test_bad_input_is_refused(jacobian: torch.Tensor, options: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        mtobal.aggregate(jacobian, "ew", **options)


def test_a_gramian_must_be_square() -> None:
    with pytest.raises(UsageError, match="square"):
        mtobal.weights(torch.ones(2, 3), "mgda")


def test_a_strategy_that_reads_the_losses_says_so() -> None:
    with pytest.raises(UsageError, match="uw reads the losses"):
        mtobal.aggregate(torch.ones(2, 3), "uw")


@pytest.mark.parametrize("spec", ["ew(reduction=mean)", "static(weights=[0.5, 0.5])"])
def test_a_weighting_that_reads_no_losses_needs_none(spec: str) -> None:
    jacobian = torch.tensor([[1.0, 2.0, -1.0], [-2.0, 0.5, 0.25]])
    torch.testing.assert_close(mtobal.aggregate(jacobian, spec), jacobian.mean(0))
    torch.testing.assert_close(mtobal.aggregate(jacobian, spec, [3.0, 1.0]), jacobian.mean(0))


def test_static_weights_name_known_tasks_and_all_of_them() -> None:
    with pytest.raises(UsageError, match=r"unknown task in static: weights 'sge'"):
        mtobal.aggregate(torch.ones(2, 3), "static(weights={sge: 1})")
    with pytest.raises(UsageError, match="no number for '1'"):
        mtobal.aggregate(torch.ones(2, 3), {"static": {"weights": {"0": 1.0}}})
    with pytest.raises(UsageError, match="3 numbers for 2 tasks"):
        mtobal.aggregate(torch.ones(2, 3), "static(weights=[1, 2, 3])")


@pytest.mark.parametrize("spec", ["sam", "cagrad+samo", "uw+rep_mtl"])
def test_what_needs_the_model_is_refused(spec: str) -> None:
    with pytest.raises(UsageError, match="needs the model and not only its gradients"):
        mtobal.aggregate(torch.eye(3), spec)
    with pytest.raises(UsageError, match="needs the model and not only its gradients"):
        mtobal.weights(torch.eye(3), spec)
