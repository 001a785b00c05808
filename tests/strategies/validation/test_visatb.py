from __future__ import annotations

import pytest
import torch

from mtobal import UsageError
from mtobal.strategies import Step, Validation, build
from mtobal.strategies.validation.visatb import (
    contributions,
    difficulties,
    mean_contributions,
    visatb_weights,
)

SCORES = torch.tensor([[60.0, 0.22, 57.0], [44.0, 0.4, 54.0], [48.0, 0.25, 70.0]], dtype=torch.float64)
MINI = torch.tensor([40.0, 0.2, 55.0], dtype=torch.float64)
TABLE = {"a": {"a": 60.0, "b": 0.22}, "b": {"a": 44.0, "b": 0.4}}


def test_contributions_do_not_depend_on_unit_and_direction_of_a_score() -> None:
    units, origins = torch.tensor([100.0, -3.0, 1.0]), torch.tensor([0.0, 5.0, -50.0])
    moved = contributions(SCORES * units + origins, MINI * units + origins)
    torch.testing.assert_close(moved, contributions(SCORES, MINI))


def test_a_task_whose_own_data_changes_nothing_gets_no_contributions() -> None:
    scores = SCORES.clone()
    scores[1, 1] = MINI[1]
    matrix = contributions(scores, MINI)
    assert matrix[:, 1].tolist() == [0.0, 1.0, 0.0]
    assert matrix.isfinite().all()


def test_an_error_is_as_difficult_as_the_score_that_it_is_the_inverse_of() -> None:
    errors = difficulties(1 / SCORES.diagonal(), 1 / MINI, higher_is_better=False)
    torch.testing.assert_close(errors, difficulties(SCORES.diagonal(), MINI))
    assert difficulties(torch.zeros(2), torch.zeros(2)).tolist() == [0.0, 0.0]


def test_a_single_task_weighs_one() -> None:
    one = torch.tensor([[2.0]], dtype=torch.float64)
    outward, inward = mean_contributions(contributions(one, one[0] / 2))
    found = visatb_weights(outward, inward, difficulties(one[0], one[0] / 2))
    assert found.final.tolist() == [1.0]


def test_tables_are_read_by_name() -> None:
    strategy = build({"visatb": {"scores": TABLE, "mini": {"b": 0.2, "a": 40.0}}})
    turned = build({"visatb": {"scores": dict(reversed(TABLE.items())), "mini": {"a": 40.0, "b": 0.2}}})
    steps = [Step(tasks, (0, 1), torch.ones(2, dtype=torch.float64)) for tasks in (("a", "b"), ("b", "a"))]
    torch.testing.assert_close(strategy.loss_weights(steps[0]), turned.loss_weights(steps[1]).flip(0))
    assert strategy.loss_weights(steps[0]).sum().item() == pytest.approx(2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mini": {"a": 1.0}}, "scores must be of the tasks"),
        ({"mini": {"a": 1.0, "c": 1.0}}, "scores must be of the tasks"),
        ({"mix": [0.5, 0.6, 0.1]}, "three shares with sum one"),
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"lower_is_better": ["c"]}, r"names \['c'\]"),
        ({"mini": {"a": float("nan"), "b": 1.0}}, "must be finite"),
    ],
)
def test_wrong_tables(options: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build({"visatb": {"scores": TABLE, "mini": {"a": 40.0, "b": 0.2}, **options}})


def test_online_weights_favour_what_still_falls() -> None:
    strategy = build("visatb_online")
    for losses in ([2.0, 1.0, 1.0], [1.0, 1.0, 1.5]):
        strategy.revise(Validation(("a", "b", "c"), torch.tensor(losses, dtype=torch.float64)))
    weights = strategy.revision.revised
    assert weights[0] > weights[1]
    assert weights[1] == weights[2]  # a rise is as bad as none
    expected = 3 * torch.tensor([0.5, 0.0, 0.0], dtype=torch.float64).div(0.5).softmax(0)
    torch.testing.assert_close(weights, expected)
    # A task without loss in one validation is compared with its last one.
    for losses in ([0.5, torch.nan, 1.5], [0.5, 0.5, 1.5]):
        strategy.revise(Validation(("a", "b", "c"), torch.tensor(losses, dtype=torch.float64)))
    assert strategy.revision.revised.argmax() == 1
