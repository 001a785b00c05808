"""VisATB: weightings from contributions and from score tables, token losses, and the windows of its rivals."""

from __future__ import annotations

import re

import torch

from golden.adapters.seeds import seed
from golden.adapters.seeds.close import assert_equal
from golden.records import Record, tensor
from mtobal.strategies import Step, build
from mtobal.strategies.loss.dwa import dynamic_average_weights
from mtobal.strategies.loss.epochs import share
from mtobal.strategies.loss.unreduced import join_losses
from mtobal.strategies.validation.visatb import (
    TaskWeights,
    contributions,
    difficulties,
    mean_contributions,
    visatb_weights,
)


@seed("visatb")
def visatb(record: Record) -> None:
    for name, case in record.items():
        if isinstance(case, dict):
            if "V_mini_over_V_full" in case.get("inputs", {}):
                from_contributions(case)
            elif "V_mini" in case:
                from_scores(case)
            elif "token_losses" in case:
                token_losses(case)
            else:  # a list of what the paper's table agrees with
                assert all(case.values())
        else:
            rivals(case, window=int(re.search(r"window(\d+)", name).group(1)))


def check(found: TaskWeights, case: Record) -> None:
    assert_equal(found.outward, case["lambda_out"], "outward weights")
    assert_equal(found.inward, case["lambda_in"], "inward weights")
    assert_equal(found.difficulty, case["lambda_D"], "difficulty weights")
    assert_equal(found.final, case["final" if "final" in case else "lambda_final"], "weights")
    torch.testing.assert_close(found.final.sum(), tensor(float(len(found.final))))


def from_contributions(case: Record) -> None:
    inputs = case["inputs"]
    outward, inward = tensor(inputs["C_out"]), tensor(inputs["C_in"])
    difficulty, mix = 1 - tensor(inputs["V_mini_over_V_full"]), inputs.get("alpha", (0.25, 0.25, 0.5))
    found = visatb_weights(outward, inward, difficulty, inputs["T"], mix)
    check(found, case)
    assert_equal((found.outward + found.inward) / 2, case["inter"], "inter-task weights")
    assert_equal(found.difficulty, case["intra"], "intra-task weights")


def from_scores(case: Record) -> None:
    scores, mini = tensor(case["V"]), tensor(case["V_mini"])
    matrix = contributions(scores, mini)
    outward, inward = mean_contributions(matrix)
    difficulty = difficulties(scores.diagonal(), mini)
    assert_equal(matrix, case["C"], "contributions")
    assert_equal(outward, case["C_out"], "outward contributions")
    assert_equal(inward, case["C_in"], "inward contributions")
    assert_equal(difficulty, case["D"], "difficulties")
    check(visatb_weights(outward, inward, difficulty, case["T"], case["alpha"]), case)
    names = [f"task{number}" for number in range(len(mini))]
    options = {
        "scores": {a: dict(zip(names, row, strict=True)) for a, row in zip(names, case["V"], strict=True)},
        "mini": dict(zip(names, case["V_mini"], strict=True)),
        "temperature": case["T"],
        "mix": case["alpha"],
    }
    step = Step(tuple(names), tuple(range(len(names))), torch.ones(len(names), dtype=torch.float64))
    assert_equal(build({"visatb": options}).loss_weights(step), case["lambda_final"], "weights of the strategy")


def token_losses(case: Record) -> None:
    losses, tasks = tensor(case["token_losses"]), tensor(case["task_ids"]).long()
    weights, valid = tensor(case["weights"]), losses != 0  # the official code takes a loss of zero for padding
    assert_equal(join_losses(losses, tasks, None, valid), case["ew"], "token mean")
    assert_equal(join_losses(losses, tasks, weights, valid), case["vitw"], "weighted token mean")
    assert_equal(join_losses(losses, tasks, None, valid, "tasks"), case["tla"], "mean of task means")


def rivals(rows: list[Record], window: int) -> None:
    """Weights by windows of losses, of the methods that the paper compares with."""
    losses = tensor([row["task_losses"] for row in rows])
    base = losses[window : 2 * window].mean(0)
    for number, row in enumerate(rows):
        equal = torch.ones_like(base)
        newer = losses[number - window + 1 : number + 1].mean(0)
        older = losses[number - 2 * window + 1 : number - window + 1].mean(0)
        by_base = share(losses[number] / base) if number >= 2 * window else equal
        by_rate = dynamic_average_weights(newer, older, 2.0) if number >= 2 * window - 1 else equal
        for name, weights in (("igb", by_base), ("dwa", by_rate)):
            assert_equal(weights, row[f"{name}_weights"], f"weights of {name} at {number}")
            assert_equal(
                weights @ losses[number] / len(weights), row[f"{name}_loss"], f"loss of {name} at {number}"
            )
