"""Equilibrium strategies, CAGrad and the methods of equal angles."""

from __future__ import annotations

import torch
from torch import Tensor

import mtobal
from golden.adapters import golden
from golden.records import Record, assert_close, tensor
from mtobal.strategies import Step, build
from mtobal.strategies.gradient.nash_mtl import nash_mtl_weights


def check(record: Record, spec: dict) -> None:
    """Compare the direction, and the weights where they are of the direction and unique."""
    jacobian = tensor(record["J"])
    gramian = jacobian @ jacobian.T
    weights = mtobal.weights(gramian, spec)
    assert torch.isfinite(weights).all()
    if "expected_behaviour" in record and "expected_direction" not in record:
        return
    direction = mtobal.aggregate(jacobian, spec)
    assert_close(record, direction, record["expected_direction"], "direction")
    assert_close(record, weights @ jacobian, record["expected_direction"], "direction from the weights")
    if "expected_weights" in record and record.get("weights_unique", True) and "weights_meaning" not in record:
        assert_close_relative(weights, record["expected_weights"])


def assert_close_relative(weights: Tensor, expected: list[float]) -> None:
    """Weights of rows of very different lengths differ as much; each must be right on its own scale."""
    torch.testing.assert_close(weights, tensor(expected), rtol=1e-7, atol=1e-12)


def is_fallback(record: Record, spec: dict) -> None:
    """The documented answer where no equilibrium exists: the min-norm point, which is zero there."""
    jacobian = tensor(record["J"])
    weights = mtobal.weights(jacobian @ jacobian.T, spec)
    torch.testing.assert_close(weights, mtobal.weights(jacobian @ jacobian.T, "mgda"))
    largest = jacobian.norm(dim=1).max().item()
    assert (weights @ jacobian).norm() <= 1e-7 * largest


@golden("nash_mtl")
def nash_mtl(record: Record) -> None:
    params = record["params"]
    if record.get("kind") == "trajectory":
        nash_mtl_trajectory(record)
        return
    check(record, {"nash_mtl": params})
    if "expected_behaviour" in record:
        is_fallback(record, {"nash_mtl": params})
    elif "weights_meaning" in record:
        jacobian = tensor(record["J"])
        assert_close_relative(nash_mtl_weights(jacobian @ jacobian.T), record["expected_weights"])


def nash_mtl_trajectory(record: Record) -> None:
    strategy = build({"nash_mtl": record["params"]})
    expected = record["expected"]
    for number, rows in enumerate(record["inputs"]["J"]):
        jacobian = tensor(rows)
        step = Step.of(len(jacobian))
        loss_weights = strategy.loss_weights(step)
        weights = strategy.aggregation_weights(jacobian @ jacobian.T, step, loss_weights)
        heads = strategy.head_weights(weights, step, loss_weights)
        strategy.update(step)
        assert_close(record, weights @ jacobian, expected["direction"][number], f"direction of step {number}")
        assert_close(record, heads, expected["head_factors"][number], f"weights of the heads in step {number}")
        assert_close(record, heads, expected["weights"][number], f"weights before clipping in step {number}")


@golden("fairgrad")
def fairgrad(record: Record) -> None:
    spec = {"fairgrad": record["params"]}
    check(record, spec)
    if "expected_behaviour" in record:
        is_fallback(record, spec)


@golden("cagrad")
def cagrad(record: Record) -> None:
    params = record["params"]
    c, rescale = params["c"], params.get("rescale", 0)
    assert params.get("reduction", "mean") == "mean"
    check(record, {"cagrad": {"c": c, "rescale": rescale}})
    jacobian = tensor(record["J"])
    multipliers = mtobal.weights(jacobian @ jacobian.T, f"cagrad(c={c}, rescale=0)") - 1.0 / len(jacobian)
    if "expected_weights" in record and record.get("weights_unique", True):
        simplex = multipliers / multipliers.sum()
        torch.testing.assert_close(simplex, tensor(record["expected_weights"]), rtol=0, atol=1e-7)
    if "expected_behaviour" in record:
        # The documented answer: within the ball, against no task.
        direction, mean = mtobal.aggregate(jacobian, f"cagrad(c={c}, rescale=0)"), jacobian.mean(0)
        assert (direction - mean).norm() <= c * mean.norm() * (1 + 1e-9)
        assert (jacobian @ direction).min() >= -1e-9 * jacobian.norm(dim=1).max() * direction.norm()


@golden("imtl_g")
def imtl_g(record: Record) -> None:
    published = record["params"]["form"]
    if published.startswith("pinv(G)"):
        check(record, {"imtl_g": {"form": "gramian"}})
        return
    assert published == "inverse" or published.startswith("paper closed form")
    check(record, {"imtl_g": {"form": "paper"}})
    if published == "inverse":
        # Where the published direction points uphill, ours is its opposite.
        jacobian, expected = tensor(record["J"]), tensor(record["expected_direction"])
        downhill = 1.0 if (jacobian @ expected).sum() >= 0 else -1.0
        direction = mtobal.aggregate(jacobian, "imtl_g")
        assert_close(record, direction, (downhill * expected).tolist(), "downhill direction")


@golden("config")
def config(record: Record) -> None:
    assert record["params"].get("length", "sum_k g_k . dhat") == "sum_k g_k . dhat"
    check(record, {"config": {}})


@golden("aligned_mtl")
def aligned_mtl(record: Record) -> None:
    params = record["params"]
    assert params["pref"].startswith("sum")
    scale_mode = {"rmse": "mean"}.get(params["scale_mode"], params["scale_mode"])
    check(record, {"aligned_mtl": {"scale_mode": scale_mode}})
