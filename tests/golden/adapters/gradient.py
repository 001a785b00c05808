"""Gradient aggregations."""

from __future__ import annotations

import itertools

import torch

import mtobal
from golden.adapters import golden
from golden.records import Record, assert_close, tensor
from mtobal.strategies.gradient import CRMOGM
from mtobal.strategies.gradient.pcgrad import pcgrad_weights


@golden("mgda")
def mgda(record: Record) -> None:
    params = record["params"]
    apply_to = "normalized" if params.get("applied_to", "raw").startswith("normalised") else "raw"
    spec = {"mgda": {"normalization": params["normalization"], "apply_to": apply_to}}
    jacobian, losses = tensor(record["J"]), tensor(record["losses"])
    direction = mtobal.aggregate(jacobian, spec, losses)
    assert_close(record, direction, record["expected_direction"], "direction")
    if record.get("weights_unique", True) and apply_to == "raw":
        weights = mtobal.weights(jacobian @ jacobian.T, spec, losses)
        assert (weights - tensor(record["expected_weights"])).abs().max() < 1e-7


@golden("pcgrad")
def pcgrad(record: Record) -> None:
    jacobian = tensor(record["J"])
    gramian = jacobian @ jacobian.T
    num_tasks = len(jacobian)
    others = [[other for other in range(num_tasks) if other != task] for task in range(num_tasks)]
    if record["params"].get("statistic") != "expectation":
        direction = pcgrad_weights(gramian, torch.tensor(others)) @ jacobian
        assert_close(record, direction, record["expected_direction"], "direction")
        return
    # Tasks draw their orders independently, so the expectation over each task's own orders is enough.
    orders = [list(itertools.permutations(row)) for row in others]
    rounds = max(len(row) for row in orders)
    draws = [torch.tensor([row[number % len(row)] for row in orders]) for number in range(rounds)]
    directions = torch.stack([pcgrad_weights(gramian, draw) @ jacobian for draw in draws])
    assert_close(record, directions.mean(0), record["expected_direction"], "expected direction")
    slack = record["tolerance"]
    drawn = torch.stack([mtobal.aggregate(jacobian, f"pcgrad(seed={seed})") for seed in range(20)])
    for sample in (directions, drawn):
        assert (sample >= tensor(record["coordinate_min"]) - slack).all()
        assert (sample <= tensor(record["coordinate_max"]) + slack).all()


@golden("krum")
def krum(record: Record) -> None:
    params, jacobian = record["params"], tensor(record["J"])
    options = {"n_byzantine": params["n_byzantine"], "n_selected": params["n_selected"]}
    distance = "plain" if params["distance"].startswith("euclidean") else "squared"
    spec = {"krum": {**options, "distance": distance}}
    assert_close(record, mtobal.aggregate(jacobian, spec), record["expected_direction"], "direction")
    gramian = jacobian @ jacobian.T
    assert_close(record, mtobal.weights(gramian, spec), record["expected_weights"], "weights")
    if "paper_squared_distance_selects" in record:
        selected = mtobal.weights(gramian, {"krum": {**options, "distance": "squared"}}).nonzero().flatten()
        assert sorted(selected.tolist()) == sorted(record["paper_squared_distance_selects"])


@golden("cr_mogm")
def cr_mogm(record: Record) -> None:
    params = record["params"]
    assert params["initial"] == "first inner weights"
    strategy = CRMOGM(inner=params["inner"], alpha=params["alpha"])
    for number, rows in enumerate(record["inputs"]["J"]):
        jacobian, losses = tensor(rows), record["inputs"].get("losses")
        weights = mtobal.weights(jacobian @ jacobian.T, strategy, losses and losses[number])
        assert_close(record, weights, record["expected"]["weights"][number], f"weights of step {number}")
