"""Aggregations that project on a cone or follow a preference."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

import mtobal
from golden.adapters import golden
from golden.records import Record, assert_close, tensor
from mtobal.solvers.epo import epo_adjustment


def preference_of(record: Record, num_tasks: int) -> Tensor:
    given = record["params"].get("pref", "uniform")
    if isinstance(given, str):
        assert given.startswith("uniform")
        return torch.full((num_tasks,), 1.0 / num_tasks, dtype=torch.float64)
    return tensor(given)


def regularized(gramian: Tensor, params: dict) -> Tensor:
    """The Gramian that a regularised projection solves with: the projection itself stays exact."""
    if not params.get("reg_eps"):
        return gramian
    trace = gramian.trace()
    normalized = gramian / trace if trace >= params["norm_eps"] else torch.zeros_like(gramian)
    return normalized + params["reg_eps"] * torch.eye(len(gramian), dtype=torch.float64)


@golden("dualproj", "upgrad")
def projection_on_the_dual_cone(record: Record) -> None:
    jacobian = tensor(record["J"])
    preference = preference_of(record, len(jacobian))
    spec = {record["strategy"]: {"preference": preference.tolist()}}
    # A strategy normalises its preference, a record takes it as it is.
    weights = mtobal.weights(regularized(jacobian @ jacobian.T, record["params"]), spec) * preference.sum()
    if "expected_direction" in record:
        assert_close(record, weights @ jacobian, record["expected_direction"], "direction")
        if not record["params"].get("reg_eps"):
            direction = mtobal.aggregate(jacobian, spec) * preference.sum()
            assert_close(record, direction, record["expected_direction"], "direction of aggregate")
    if "expected_weights" in record and record.get("weights_unique", True):
        assert_close(record, weights, record["expected_weights"], "weights")
    assert torch.isfinite(weights).all()


@golden("epo")
def exact_pareto_optimal_search(record: Record) -> None:
    params, expected = record["params"], record["expected"]
    jacobian, losses = tensor(record["inputs"]["J"]), tensor(record["inputs"]["losses"])
    preference = np.array(params["preference"])
    adjustment, non_uniformity = epo_adjustment(losses.numpy(), preference)
    assert_close(record, torch.tensor(non_uniformity), expected["mu"], "non-uniformity")
    assert_close(record, torch.from_numpy(adjustment), expected["adjustment"], "adjustment")
    assert (non_uniformity > params["eps"]) == params["mode"].startswith("balance")
    options = {"preference": params["preference"], "eps": params["eps"], "relaxed": "relaxed" in params["mode"]}
    weights = mtobal.weights(jacobian @ jacobian.T, {"epo": options}, losses)
    gramian = jacobian @ jacobian.T
    if params["mode"].startswith("balance"):
        objective = weights @ gramian @ tensor(expected["adjustment"])
    else:
        objective = (gramian @ weights).sum()
    assert_close(record, objective, expected["objective"], "objective")
    if record.get("unique", True):
        assert_close(record, weights, expected["alpha"], "weights")
        direction = mtobal.aggregate(jacobian, {"epo": options}, losses)
        assert_close(record, direction, expected["direction"], "direction")


@golden("pareto_mtl")
def pareto_mtl(record: Record) -> None:
    params, expected = record["params"], record["expected"]
    jacobian, losses = tensor(record["inputs"]["J"]), tensor(record["inputs"]["losses"])
    spec = {"pareto_mtl": {"preferences": params["preferences"], "index": params["index"]}}
    assert_close(record, mtobal.aggregate(jacobian, spec, losses), expected["direction"], "direction")
    preferences = tensor(params["preferences"])
    active = (preferences - preferences[params["index"]]) @ losses > 0
    assert active.sum() == expected["n_active"]
    if torch.linalg.matrix_rank(jacobian) == len(jacobian):
        weights = mtobal.weights(jacobian @ jacobian.T, spec, losses)
        assert_close(record, weights, expected["task_weights"], "weights")
