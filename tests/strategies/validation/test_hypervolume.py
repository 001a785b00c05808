from __future__ import annotations

import math

import pytest
import torch

from mtobal import UsageError
from mtobal.strategies import Validation, build

TASKS = ("seg", "depth")


def after(spec: str, *losses: list[float]) -> torch.Tensor:
    strategy = build(spec)
    for row in losses:
        strategy.revise(Validation(TASKS, torch.tensor(row, dtype=torch.float64)))
    return strategy.revision.revised


def test_the_first_validation_sets_the_measure() -> None:
    assert after("hypervolume", [2.0, 4.0]).tolist() == [1.0, 1.0]
    # Half of both losses is gone: a quarter of the square.
    expected = 0.5 + 1.5 * math.tanh(0.25)
    assert after("hypervolume", [2.0, 4.0], [1.0, 2.0]).tolist() == pytest.approx([expected] * 2)


def test_no_progress_halves_the_losses() -> None:
    assert after("hypervolume", [2.0, 4.0], [1.0, 2.0], [1.5, 2.0]).tolist() == [0.5, 0.5]
    assert after("hypervolume", [2.0, 4.0], [3.0, 1.0]).tolist() == [0.5, 0.5]


def test_units_do_not_matter_unless_asked_for() -> None:
    plain = after("hypervolume", [2.0, 4.0], [1.5, 3.5])
    torch.testing.assert_close(after("hypervolume", [2.0, 4e3], [1.5, 3.5e3]), plain)
    raw = after("hypervolume(relative=false)", [2.0, 4e3], [1.5, 3.5e3])
    assert raw.tolist() == pytest.approx([2.0, 2.0])


def test_preference_is_kept_in_proportion() -> None:
    weights = after("hypervolume(preference=[1, 3])", [2.0, 4.0], [1.0, 2.0])
    assert weights[1].item() == pytest.approx(3 * weights[0].item())


def test_a_negative_preference_is_refused() -> None:
    with pytest.raises(UsageError, match="hypervolume: preference must be finite and at least 0"):
        build("hypervolume(preference=[1, -1])")


def test_it_needs_whole_validations() -> None:
    with pytest.raises(UsageError, match="lacks values"):
        after("hypervolume", [2.0, math.nan])
    with pytest.raises(UsageError, match="reads metrics"):
        after("hypervolume(objectives=metrics)", [2.0, 1.0])
