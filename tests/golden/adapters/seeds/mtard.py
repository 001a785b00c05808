"""MTARD: balanced losses and temperatures of two teachers."""

from __future__ import annotations

import torch

from golden.adapters.seeds import seed
from golden.adapters.seeds.close import assert_equal
from golden.records import Record
from mtobal.strategies import Step, build
from mtobal.strategies.loss.ebb import EntropyBalancedTemperature, distillation_loss, teacher_entropy

INPUTS = (
    "b=arange(12).view(3,4); teacher_adv=2cos(.8b+.1t); teacher_nat=5sin(.5b+.2t); "
    "student_adv=(.2+.3t)cos(.8b); student_nat=(.2+.05t)sin(.5b)"
)
TASKS = ("adv", "nat")


@seed("mtard")
def mtard(record: Record) -> None:
    assert record["inputs"] == INPUTS
    hyper = record["hyper"]
    low, high = hyper["tau_range"]
    balance = build({"nlb": {"rate": hyper["r_w"], "exponent": float(hyper["beta"])}})
    temperature = EntropyBalancedTemperature(2, hyper["r_tau"], low, high)
    b = torch.arange(12, dtype=torch.float64).view(3, 4)
    for row in record["rows"]:
        t = row["t"]
        teachers = [2 * (0.8 * b + 0.1 * t).cos(), 5 * (0.5 * b + 0.2 * t).sin()]
        students = [(0.2 + 0.3 * t) * (0.8 * b).cos(), (0.2 + 0.05 * t) * (0.5 * b).sin()]
        triples = list(zip(students, teachers, temperature.values.clone(), strict=True))
        losses = torch.stack([distillation_loss(*triple) for triple in triples])
        entropies = torch.stack([teacher_entropy(teacher, value) for _, teacher, value in triples])
        step = Step(TASKS, (0, 1), losses)
        weights = balance.loss_weights(step)
        balance.update(step)
        temperature.update(teachers)
        for number, name in enumerate(TASKS):
            assert_equal(losses[number], row[f"kl_{name}"], f"divergence {name} at {t}")
            assert_equal(entropies[number], row[f"H_{name}"], f"entropy {name} at {t}")
            assert_equal(temperature.values[number], row[f"temp_{name}"], f"temperature {name} at {t}")
            assert_equal(weights[number], row[f"w_{name}"], f"weight {name} at {t}")
        assert_equal(weights @ losses, row["total"], f"loss at {t}")
