"""R-MTGB: gates and errors of a run."""

from __future__ import annotations

import numpy as np

from golden.adapters.seeds import seed
from golden.adapters.seeds.close import assert_equal
from golden.records import Record
from mtobal.models.r_mtgb import RobustMultiTaskBoosting

DATA = "RandomState(0): 4 tasks x 40 pts, f=sin(2x0)+.5x1, task 3 = -f, noise .05"


@seed("rmtgb")
def r_mtgb(record: Record) -> None:
    assert record["data"] == DATA
    random = np.random.RandomState(0)
    inputs, targets = [], []
    for task in range(4):
        drawn = random.uniform(-1, 1, (40, 2))
        clean = np.sin(2 * drawn[:, 0]) + 0.5 * drawn[:, 1]
        inputs.append(drawn)
        targets.append((-clean if task == 3 else clean) + 0.05 * random.randn(40))
    tasks = np.repeat(np.arange(4), 40)
    hyper = record["hyper"]
    model = RobustMultiTaskBoosting(
        *hyper["n_iter"], hyper["lr"], hyper["max_leaf_nodes"], hyper["np_seed_theta"]
    ).fit(np.concatenate(inputs), np.concatenate(targets), tasks=tasks)
    assert_equal(model.logits_, record["theta"], "logits of the gates")
    assert_equal(model.gates_, record["sigmoid_theta"], "gates")
    errors = [
        np.sqrt(np.mean((model.predict(inputs[task], tasks=np.full(40, task)) - targets[task]) ** 2))
        for task in range(4)
    ]
    assert_equal(np.array(errors), record["train_rmse_per_task"], "errors")
