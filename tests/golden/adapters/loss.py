"""Loss weightings."""

from __future__ import annotations

import torch

import mtobal
from golden.adapters import golden
from golden.records import Record, assert_close, tensor
from mtobal.strategies import Step
from mtobal.strategies.loss import UW


@golden("ew_sum", "ew_mean")
def equal_weights(record: Record) -> None:
    spec = f"ew(reduction={record['strategy'].removeprefix('ew_')})"
    jacobian = tensor(record["J"])
    assert_close(record, mtobal.aggregate(jacobian, spec), record["expected_direction"], "direction")
    assert_close(record, mtobal.weights(jacobian @ jacobian.T, spec), record["expected_weights"], "weights")


@golden("uw")
def uncertainty_weighting(record: Record) -> None:
    params = record["params"]
    strategy = UW(
        form="half" if params["variant"] == "half" else "laplace",
        init=params["s_init"],
        lr=params["lr"],
        optimizer=params["optimizer"],
    )
    for number, losses in enumerate(record["inputs"]["losses"]):
        step = Step.of(len(losses), tensor(losses))
        weights = strategy.weigh(step)
        assert_close(record, weights, record["expected"]["loss_weights"][number], f"weights of step {number}")
        strategy.update(step)
        assert isinstance(strategy.log_variances, torch.Tensor)
        state = strategy.log_variances.detach()
        assert_close(record, state, record["expected"]["s_after"][number], f"log-variances after step {number}")
