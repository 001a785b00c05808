"""MFTCoder: the weights of CoBa after each validation, and the loss modes."""

from __future__ import annotations

import re

import torch
from torch.nn import functional as F

from golden.adapters.seeds import seed
from golden.adapters.seeds.close import assert_equal
from golden.records import Record, tensor
from mtobal.strategies import Validation
from mtobal.strategies.loss.unreduced import join_losses, task_losses
from mtobal.strategies.validation import CoBa
from mtobal.strategies.validation.coba import coba_weights

MODES = {"case1": "tokens", "case2": "samples", "case3": "tasks", "case4": "task_samples", "coba": "tasks"}


@seed("mftcoder")
def mftcoder(record: Record) -> None:
    coba(record["coba"])
    loss_modes(record["loss_modes"])


def coba(record: Record) -> None:
    hyper = record["hyper"]
    ratios = tensor(record["valid_loss_ratio_history"])
    names = tuple(f"task{number}" for number in range(hyper["K"]))
    strategy = CoBa(warm_up=hyper["warmup"], window=hyper["history_length"], temperature=float(hyper["tau"]))
    rows = {row["step"]: row for row in record["rows"]}
    first = tensor([2.0**number for number in range(hyper["K"])])  # ratios do not depend on the unit of a loss
    ratios = ratios.where(ratios != 0, torch.nan)  # zero stands for a task without validation loss
    for step, ratio in enumerate(ratios.T, start=1):
        strategy.revise(Validation(names, first * ratio))
        if step not in rows:
            continue
        row = rows[step]
        assert strategy.history is not None
        assert strategy.steepest is not None
        found = coba_weights(strategy.history, strategy.steepest, strategy.temperature)
        assert_equal(strategy.history[-1], row["slopes"], f"slopes at {step}")
        assert_equal(strategy.steepest[-1], row["total_slope"], f"largest slope at {step}")
        assert_equal(found.relative, row["rcs"], f"relative shares at {step}")
        assert_equal(found.absolute, row["acs"], f"absolute shares at {step}")
        assert_equal(found.divergence, row["divergence_factor"], f"divergence at {step}")
        assert_equal(strategy.revised, row["weight"], f"weights at {step}")
        assert strategy.revised.min() >= hyper["min_weight"] * 0.9


def loss_modes(record: Record) -> None:
    size, shape = re.fullmatch(r"sin\(arange\((\d+)\)\)\.view\(([\d,]+)\)", record["logits"]).groups()
    logits = torch.arange(int(size), dtype=torch.float64).sin().view([int(side) for side in shape.split(",")])
    labels = tensor(record["labels"]).long()
    tasks = tensor(record["task_id"]).long().flatten()
    weights = tensor(record["coba_weights"])
    valid = labels >= 0
    losses = F.cross_entropy(logits.transpose(1, 2), labels, reduction="none", ignore_index=-100)
    for mode, expected in record["modes"].items():
        given = weights if mode == "coba" else None
        found = join_losses(losses, tasks, given, valid, MODES[mode], num_tasks=len(weights))
        assert_equal(found, expected["loss"], mode)
        means, _ = task_losses(losses, tasks, len(weights), valid)
        # The official code writes these down in single precision.
        assert_equal(means, expected["task_loss"], f"task losses of {mode}", 1e-6)
