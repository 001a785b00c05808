"""IBCL: intervals of either convention, and the average for a preference."""

from __future__ import annotations

from golden.adapters.seeds import seed
from golden.adapters.seeds.close import assert_equal
from golden.records import Record, tensor
from mtobal.models.ibcl import Gaussian, PreferenceAveraging


@seed("ibcl")
def ibcl(record: Record) -> None:
    known = Gaussian({"weight": tensor(record["mu"])}, {"weight": tensor(record["sigma"])})
    for mass, expected in (
        (record["alpha"], record["official_interval"]),
        (1 - record["alpha"], record["paper_1_minus_alpha_interval"]),
    ):
        for bound, values in zip(known.interval(mass), expected, strict=True):
            assert_equal(bound["weight"], values, f"bound of mass {mass}")
    averages(record["combination"])


def averages(record: Record) -> None:
    preference = record["preference"]
    each = len(record["mu"]) // len(preference)
    solutions = [
        Gaussian({"weight": tensor(mean)}, {"weight": tensor(scale)})
        for mean, scale in zip(record["mu"], record["sigma"], strict=True)
    ]
    knowledge = PreferenceAveraging(tolerance=0.0)
    for task in range(len(preference)):
        knowledge.add(str(task), solutions[task * each : (task + 1) * each])
        assert_equal(
            tensor([preference[task] / each] * each), record["weights"][task * each : (task + 1) * each], "weights"
        )
    found = knowledge.model_for({str(task): share for task, share in enumerate(preference)})
    assert_equal(found.mean["weight"], record["mu_bar"], "mean")
    assert_equal(found.scale["weight"], record["sigma_bar"], "scale")
