"""Aggregations that read the Jacobian, remember gradients, or take independent samples of them."""

from __future__ import annotations

import torch
from torch import Tensor

import mtobal
from golden.adapters import golden
from golden.records import Record, assert_close, tensor
from mtobal.ops import Jacobian, sign_drop
from mtobal.strategies import Direction, JacobianAggregation, Step
from mtobal.strategies.gradient import DBMTL, IMTL, ExcessMTL, GradNorm, MoCo
from mtobal.strategies.gradient.excess_mtl import excess_log_weights, excess_risks
from mtobal.strategies.gradient.gradvac import gradvac_weights
from mtobal.strategies.gradient.modo import modo_weights
from mtobal.strategies.gradient.sdmgrad import directed_weights, sdmgrad_weights


def take_step(strategy: JacobianAggregation, rows: Tensor, losses: Tensor | None) -> tuple[Step, Direction]:
    step = Step.of(len(rows), losses)
    return step, strategy.direct(Jacobian((rows,), ("layer.weight",)), step)


@golden("gradvac")
def gradvac(record: Record) -> None:
    params = record["params"]
    assert (params["order"], params["granularity"], params["reduction"]) == ("ascending", "whole vector", "sum")
    jacobians = record["inputs"]["J"]
    size = len(jacobians[0])
    orders = torch.tensor([[other for other in range(size) if other != task] for task in range(size)])
    targets = torch.zeros(size, size, dtype=torch.float64)
    for number, rows in enumerate(map(tensor, jacobians)):
        weights, targets = gradvac_weights(rows @ rows.T, targets, orders, params["beta"])
        assert_close(record, weights @ rows, record["expected"]["direction"][number], f"direction {number}")
        assert_close(record, targets, record["expected"]["target_after"][number], f"targets {number}")


@golden("graddrop")
def graddrop(record: Record) -> None:
    params = record["params"]
    assert params["f"] == "identity"
    rows = tensor(record["J"])
    if params.get("statistic") != "expectation":
        leak = torch.as_tensor(params["leak"], dtype=torch.float64).expand(len(rows))
        found = sign_drop(rows, 2 * tensor(params["U"]) - 1, leak)
        assert_close(record, found, record["expected_direction"], "direction")
        if not leak.any():
            assert_close(record, sign_drop(rows, 2 * tensor(params["U"]) - 1), found.tolist(), "without leak")
        return
    positive, negative = tensor(record["positive_part"]), tensor(record["negative_part"])
    slack = record["tolerance"]
    size = positive - negative
    shares = torch.where(size > 0, positive / size.where(size > 0, 1.0), 0.5)
    for leak in (0.0, 0.25, 1.0):
        leaks = torch.full((len(rows),), leak, dtype=torch.float64)
        # The sign changes where U passes the share of the positive entries, and only there.
        above, below = (sign_drop(rows, 2 * shares - 1 + side, leaks) for side in (1e-9, -1e-9))
        mixed = (shares > 0) & (shares < 1)
        expected = torch.where(mixed, shares * below + (1 - shares) * above, sign_drop(rows, 0 * shares, leaks))
        assert_close(record, expected, record["expected_direction"], f"expected direction with leak {leak}")
    for seed in range(20):
        drawn = mtobal.aggregate(rows, f"graddrop(seed={seed})")
        assert torch.minimum((drawn - positive).abs(), (drawn - negative).abs()).max() <= slack


@golden("trimmed_mean")
def trimmed_mean(record: Record) -> None:
    direction = mtobal.aggregate(tensor(record["J"]), f"trimmed_mean(trim={record['params']['trim_number']})")
    assert_close(record, direction, record["expected_direction"], "direction")


@golden("gradnorm")
def gradnorm(record: Record) -> None:
    params, inputs, expected = record["params"], record["inputs"], record["expected"]
    assert params["optimizer"] == "sgd"
    form = "softmax" if params["form"].startswith("LibMTL") else "paper"
    strategy = GradNorm(alpha=params["alpha"], lr=params["lr"], form=form)
    rows = tensor(inputs["J"])
    strategy.initial = tensor(inputs["initial_losses"])
    strategy.learned = torch.ones(len(rows), dtype=torch.float64)
    for number, losses in enumerate(map(tensor, inputs["losses"])):
        step, found = take_step(strategy, rows, losses)
        assert_close(record, found.weights, expected["loss_weights"][number], f"weights of step {number}")
        assert_close(record, found.blocks[0], (found.weights @ rows).tolist(), f"direction {number}")
        strategy.update(step)
        if "s_after" in expected:
            assert_close(record, strategy.learned, expected["s_after"][number], f"logits after step {number}")


@golden("excess_mtl")
def excess_mtl(record: Record) -> None:
    params, inputs = record["params"], record["inputs"]
    size = params["robust_step_size"]
    if not params["form"].startswith("official"):
        excess_from_the_first_call(record)
        return
    strategy = ExcessMTL(step_size=size)
    for number, rows in enumerate(map(tensor, inputs["J"])):
        _, found = take_step(strategy, rows, None)
        assert_close(record, found.weights, record["expected"]["weights"][number], f"weights of step {number}")
        assert_close(record, found.blocks[0], (found.weights @ rows).tolist(), f"direction {number}")


def excess_from_the_first_call(record: Record) -> None:
    """The reading in which the first call learns too, from the excess itself."""
    jacobians = tensor(record["inputs"]["J"])
    squares = torch.zeros_like(jacobians[0])
    log_weights = torch.full((len(squares),), 1 / len(squares), dtype=torch.float64).log()
    baseline = torch.ones_like(log_weights)
    for number, rows in enumerate(jacobians):
        squares = squares + rows**2
        excess = excess_risks(rows, squares)
        log_weights = excess_log_weights(log_weights, excess / baseline, record["params"]["robust_step_size"])
        baseline = excess + 1e-7 if number == 0 else baseline
        assert_close(record, log_weights.exp(), record["expected"]["weights"][number], f"weights of step {number}")


@golden("db_mtl")
def db_mtl(record: Record) -> None:
    strategy = DBMTL(**record["params"])
    for number, rows in enumerate(map(tensor, record["inputs"]["J"])):
        losses = tensor(record["inputs"]["losses"][number])
        step, found = take_step(strategy, rows, losses)
        assert_close(record, found.blocks[0], record["expected"]["direction"][number], f"direction {number}")
        assert torch.equal(strategy.head_weights(None, step), 1 / (losses + 1e-8))
        strategy.update(step)


@golden("moco")
def moco(record: Record) -> None:
    params = dict(record["params"])
    form = "softmax" if params.pop("form") == "LibMTL" else "paper"
    strategy = MoCo(**{name.removeprefix("MoCo_"): value for name, value in params.items()}, form=form)
    for number, rows in enumerate(map(tensor, record["inputs"]["J"])):
        step, found = take_step(strategy, rows, tensor(record["inputs"]["losses"][number]))
        assert_close(record, found.blocks[0], record["expected"]["direction"][number], f"direction {number}")
        assert_close(record, strategy.task_weights, record["expected"]["lambda"][number], f"weights {number}")
        strategy.update(step)


@golden("modo")
def modo(record: Record) -> None:
    inputs = {name: tensor(values) for name, values in record["inputs"].items()}
    weights = torch.full(inputs["J1"].shape[1:2], 1 / inputs["J1"].shape[1], dtype=torch.float64)
    for number, rows in enumerate(inputs["J3"]):
        cross_gramian = inputs["J1"][number] @ inputs["J2"][number].T
        weights = modo_weights(weights, cross_gramian, record["params"]["gamma"], record["params"]["rho"])
        assert_close(record, weights, record["expected"]["lambda"][number], f"weights {number}")
        assert_close(record, weights @ rows, record["expected"]["direction"][number], f"direction {number}")


@golden("sdmgrad")
def sdmgrad(record: Record) -> None:
    params = record["params"]
    assert params["scale"].endswith("+ 1e-8)")
    inputs = {name: tensor(values) for name, values in record["inputs"].items()}
    weights = torch.full(inputs["zeta"].shape[1:2], 1 / inputs["zeta"].shape[1], dtype=torch.float64)
    for number, rows in enumerate(inputs["zeta"]):
        weights = sdmgrad_weights(
            weights,
            inputs["xi1"][number] @ inputs["xi2"][number].T,
            params["lamda"],
            params["lr"],
            params["momentum"],
            params["niter"],
            epsilon=1e-8,
        )
        assert_close(record, weights, record["expected"]["w"][number], f"weights {number}")
        direction = directed_weights(weights, params["lamda"]) @ rows
        assert_close(record, direction, record["expected"]["direction"][number], f"direction {number}")


@golden("imtl_hybrid")
def imtl(record: Record) -> None:
    params, expected = record["params"], record["expected"]
    strategy = IMTL("paper", init=params["s_init"], lr=params["lr"], optimizer=params["optimizer_of_s"])
    for number, rows in enumerate(map(tensor, record["inputs"]["J"])):
        step = Step.of(len(rows), tensor(record["inputs"]["losses"][number]))
        weights = strategy.weights(rows @ rows.T, step)
        assert_close(record, weights, expected["weights_on_raw_gradients"][number], f"weights {number}")
        assert_close(record, weights @ rows, expected["direction"][number], f"direction {number}")
        assert_close(record, strategy.head_weights(weights, step), expected["head_factors"][number], "heads")
        strategy.update(step)
        log_weights = strategy.loss_balance.values
        assert isinstance(log_weights, Tensor)
        assert_close(record, log_weights.detach(), expected["s_after"][number], f"log-weights after {number}")
