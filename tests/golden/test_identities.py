"""The relations between strategies that the golden record `identities` states, on every Jacobian there is."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

import mtobal
from golden.records import Record, load, tensor

RECORDS = load("classic.json")
CARDS = mtobal.strategies.available()
Check = Callable[..., Iterator[float]]


@dataclass(frozen=True)
class Identity:
    """A statement, the strategies that it needs, and the residuals of the relation."""

    pattern: str
    strategies: tuple[str, ...]
    check: Check


IDENTITIES: list[Identity] = []


def states(pattern: str, *strategies: str) -> Callable[[Check], Check]:
    """List a check under the statement it is for; a group `name` of the pattern is a strategy too."""

    def add(check: Check) -> Check:
        IDENTITIES.append(Identity(pattern, strategies, check))
        return check

    return add


def cases() -> dict[str, Tensor]:
    """Every Jacobian of the records by its name."""
    return {record["case"]: tensor(record["J"]) for record in RECORDS if record["J"] is not None}


def has_full_row_rank(jacobian: Tensor) -> bool:
    norms = jacobian.norm(dim=1)
    if norms.min() == 0:
        return False
    return bool(torch.linalg.matrix_rank(jacobian / norms[:, None]) == len(jacobian))


def is_stationary(jacobian: Tensor) -> bool:
    norms = jacobian.norm(dim=1)
    if norms.min() == 0:
        return True
    return bool(mtobal.aggregate(jacobian / norms[:, None], "mgda").norm() < 1e-6)


def distance(actual: Tensor, expected: Tensor) -> float:
    """Largest difference of two directions relative to their size."""
    return ((actual - expected).abs().max() / expected.abs().max().clamp(min=1e-300)).item()


def unit(vector: Tensor) -> Tensor:
    return vector / vector.norm()


@states(r"nash_mtl with max_norm 0: squared norm of the direction equals K", "nash_mtl")
def squared_norm_is_the_number_of_tasks() -> Iterator[float]:
    for jacobian in cases().values():
        if not is_stationary(jacobian):
            direction = mtobal.aggregate(jacobian, "nash_mtl(max_norm=0)")
            yield abs(direction.dot(direction).item() / len(jacobian) - 1)


@states(r"nash_mtl direction does not change when rows are rescaled .*", "nash_mtl")
def row_scales_do_not_matter() -> Iterator[float]:
    for jacobian in cases().values():
        if not is_stationary(jacobian):
            scales = 2.0 ** torch.arange(len(jacobian), dtype=torch.float64).roll(1) / 3
            direction = mtobal.aggregate(scales[:, None] * jacobian, "nash_mtl(max_norm=0)")
            yield distance(direction, mtobal.aggregate(jacobian, "nash_mtl(max_norm=0)"))


@states(r"fairgrad alpha=1 equals nash_mtl max_norm 0", "fairgrad", "nash_mtl")
def fairness_of_degree_one_is_nash_bargaining() -> Iterator[float]:
    for jacobian in cases().values():
        fair = mtobal.aggregate(jacobian, "fairgrad(alpha=1, max_norm=0)")
        yield distance(fair, mtobal.aggregate(jacobian, "nash_mtl(max_norm=0)"))


@states(r"K=2: nash_mtl = \(u1\+u2\)/sqrt\(1\+cos\)", "nash_mtl")
def two_tasks_bargain_for_the_bisector() -> Iterator[float]:
    for jacobian in cases().values():
        if len(jacobian) == 2 and not is_stationary(jacobian):
            first, second = unit(jacobian[0]), unit(jacobian[1])
            expected = (first + second) / (1 + first.dot(second)).sqrt()
            yield distance(mtobal.aggregate(jacobian, "nash_mtl(max_norm=0)"), expected)


@states(
    r"K=2: mgda l2 \(normalised\), imtl_g, config are parallel to u1\+u2",
    *("mgda", "imtl_g", "config"),
)
def two_tasks_meet_on_the_bisector() -> Iterator[float]:
    for jacobian in cases().values():
        if len(jacobian) == 2 and not is_stationary(jacobian):
            bisector = unit(unit(jacobian[0]) + unit(jacobian[1]))
            for spec in ("mgda(normalization=l2, apply_to=normalized)", "imtl_g", "config"):
                yield distance(unit(mtobal.aggregate(jacobian, spec)), bisector)


@states(r"full row rank: imtl_g is parallel to config .*", "imtl_g", "config")
def equal_projections_mean_equal_angles() -> Iterator[float]:
    for jacobian in cases().values():
        if has_full_row_rank(jacobian):
            expected = unit(mtobal.aggregate(jacobian, "config"))
            yield distance(unit(mtobal.aggregate(jacobian, "imtl_g")), expected)
            published = unit(mtobal.aggregate(jacobian, "imtl_g(form=paper)"))
            yield min(distance(published, expected), distance(-published, expected))


@states(
    r"no conflicting pair .*: upgrad = dualproj = mean and pcgrad = sum",
    *("upgrad", "dualproj", "pcgrad"),
)
def without_conflict_nothing_is_changed() -> Iterator[float]:
    for jacobian in cases().values():
        if (jacobian @ jacobian.T).min() >= 0:
            for spec in ("upgrad", "dualproj"):
                yield distance(mtobal.aggregate(jacobian, spec), jacobian.mean(0))
            yield distance(mtobal.aggregate(jacobian, "pcgrad"), jacobian.sum(0))


@states(
    r"upgrad, dualproj, mgda, nash, config never conflict: .*",
    *("upgrad", "dualproj", "mgda", "nash_mtl", "config"),
)
def no_task_gets_worse() -> Iterator[float]:
    for jacobian in cases().values():
        specs = ["upgrad", "dualproj", "mgda", "nash_mtl(max_norm=0)"]
        # Of dependent rows, config finds the least squares only.
        specs += ["config"] if has_full_row_rank(jacobian) else []
        for spec in specs:
            direction = mtobal.aggregate(jacobian, spec)
            largest = jacobian.norm(dim=1).max()
            # What rounding leaves of a direction of zero, at a stationary point, points anywhere.
            if direction.norm() > 1e-12 * largest:
                yield max(0.0, -((jacobian @ direction).min() / (largest * direction.norm())).item())


@states(r"(?P<name>\w+): positively homogeneous, A\(2\^-13 J\) = 2\^-13 A\(J\)")
def scales_with_the_gradients(name: str) -> Iterator[float]:
    yield from degree_residuals(CARDS[name].example, 1.0)


@states(r"(?P<name>\w+): A\(2\^-13 J\) = A\(J\) \(degree 0\)")
def ignores_the_scale_of_the_gradients(name: str) -> Iterator[float]:
    yield from degree_residuals(CARDS[name].example, 0.0)


@states(r"fairgrad alpha=(?P<alpha>[\d.]+): homogeneous of degree .*", "fairgrad")
def degree_of_fairness(alpha: str) -> Iterator[float]:
    power = float(alpha)
    yield from degree_residuals(f"fairgrad(alpha={alpha}, max_norm=0)", (1 - power) / (1 + power))


def degree_residuals(spec: str, degree: float) -> Iterator[float]:
    for jacobian in cases().values():
        if degree == 1.0 or not is_stationary(jacobian):
            expected = 2.0 ** (-13 * degree) * mtobal.aggregate(jacobian, spec)
            yield distance(mtobal.aggregate(2.0**-13 * jacobian, spec), expected)


def identity_of(statement: str) -> tuple[Identity, dict[str, Any]]:
    for identity in IDENTITIES:
        if match := re.fullmatch(identity.pattern, statement):
            return identity, match.groupdict()
    raise AssertionError(f"no check for the identity {statement!r}")


def statements() -> list[tuple[Record, str]]:
    """Those whose strategies are all registered."""
    found = []
    for record in RECORDS:
        for entry in record["check"] if record.get("kind") == "identities" else ():
            identity, groups = identity_of(entry["statement"])
            if {*identity.strategies, *([groups["name"]] if "name" in groups else [])} <= CARDS.keys():
                found.append((record, entry["statement"]))
    return found


@pytest.mark.parametrize(("record", "statement"), [pytest.param(*entry, id=entry[1]) for entry in statements()])
def test_identity(record: Record, statement: str) -> None:
    identity, groups = identity_of(statement)
    residuals = list(identity.check(**groups))
    assert residuals, "no case of the records that the statement is about"
    assert max(residuals) <= record["tolerance"]
