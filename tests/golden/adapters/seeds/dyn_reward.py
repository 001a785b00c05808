"""Dynamic reward weighting: hypervolumes, the factor that follows from them, and weights by influence."""

from __future__ import annotations

import numpy as np
import torch

from golden.adapters.seeds import seed
from golden.adapters.seeds.close import assert_equal
from golden.records import Record, tensor
from mtobal.solvers import hypervolume
from mtobal.strategies import Step, Validation, build
from mtobal.strategies.gradient.gradient_influence import influences
from mtobal.strategies.validation import Hypervolume


@seed("dyn_reward")
def dynamic_reward_weighting(record: Record) -> None:
    volumes = record["hypervolume"]
    for case in volumes["cases"]:
        assert_equal(hypervolume(np.array(case["points"]), np.array(case["ref"])), case["hv"], "hypervolume")
    bug = volumes["known_bug"]
    assert_equal(hypervolume(np.array(bug["points"]), np.array(bug["ref"])), bug["clipped"], "clipped volume")
    progress(record["hypervolume_meta_reward"])
    by_influence(record["gradient_weights"])


def progress(record: Record) -> None:
    directions = tuple(record["maximize"])
    names = tuple(f"objective{number}" for number in range(len(directions)))
    strategy = Hypervolume(objectives="metrics", relative=False)
    losses = torch.full((len(names),), torch.nan, dtype=torch.float64)
    strategy.revise(Validation(names, losses, tensor(record["reference"]), directions))
    before = 0.0
    for row in record["rows"]:
        strategy.revise(Validation(names, losses, tensor(row["point"]), directions))
        assert strategy.revised.isfinite().all()
        assert strategy.front is not None
        gain = hypervolume(strategy.front.numpy(), np.zeros(len(names))) - before
        before += gain
        if row["error"] is None:  # the official code fails where a volume becomes negative
            assert_equal(strategy.revised, [row["meta_reward"]] * len(names), "factor")
            # It also loses volume to points worse than the reference.
            assert_equal(gain, max(row["delta_hv"], 0.0), "gain")


def by_influence(record: Record) -> None:
    gradients = tensor(record["G"])
    # The official code starts from weights of three decimals, the first of which makes up the sum.
    others = [round(1 / len(gradients), 3)] * (len(gradients) - 1)
    start = [1 - sum(others), *others]
    options = {"rate": record["lr"] / record["mu"], "max_norm": None, "initial": start}
    strategy = build({"gradient_influence": options})
    for factor, row in zip(record["scale_per_step"], record["rows"], strict=True):
        gramian = factor**2 * (gradients @ gradients.T)
        step = Step.of(len(gradients))
        assert_equal(influences(gramian, None), row["influence"], f"influence at {row['t']}")
        weights = strategy.aggregation_weights(gramian, step, torch.ones(len(gradients)))
        strategy.update(step)
        assert_equal(weights, row["weights"], f"weights at {row['t']}")
