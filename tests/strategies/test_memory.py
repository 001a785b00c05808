from __future__ import annotations

import pytest
import torch

from mtobal import UsageError
from mtobal.ops import Jacobian
from mtobal.strategies import Step
from mtobal.strategies.memory import RowMemory, simplex_share, with_share

TASKS = ("a", "b", "c")


def ones(tasks: int, *names: str) -> Jacobian:
    return Jacobian(tuple(torch.ones(tasks, 2) for _ in names), names)


def add(rows: torch.Tensor, gradients: torch.Tensor) -> torch.Tensor:
    return rows.add_(gradients)


def test_only_active_tasks_and_given_parameters_change() -> None:
    memory = RowMemory("mine")
    assert len(list(memory.update(ones(3, "w", "v"), Step(TASKS, (0, 1, 2)), add))) == 2
    (new,) = memory.update(ones(2, "w"), Step(TASKS, (0, 2)), add)
    assert torch.equal(new, torch.full((2, 2), 2.0))
    assert memory.blocks["w"][:, 0].tolist() == [2.0, 1.0, 2.0]
    assert memory.blocks["v"][:, 0].tolist() == [1.0, 1.0, 1.0]


def test_a_copy_of_the_state_is_loaded() -> None:
    memory = RowMemory("mine")
    list(memory.update(ones(3, "w"), Step(TASKS, (0, 1, 2)), add))
    other = RowMemory("mine")
    state = memory.state_dict()
    other.load_state_dict(state)
    list(other.update(ones(3, "w"), Step(TASKS, (0, 1, 2)), add))
    assert memory.blocks["w"][0, 0] == 1.0
    assert other.blocks["w"][0, 0] == 2.0


def test_another_model_or_other_tasks_are_refused() -> None:
    memory = RowMemory("mine")
    list(memory.update(ones(3, "w"), Step(TASKS, (0, 1, 2)), add))
    with pytest.raises(UsageError, match=r"mine remembers rows of shape \(3, 2\) for 'w', but this step has 2"):
        list(memory.update(ones(2, "w"), Step(TASKS[:2], (0, 1)), add))
    with pytest.raises(UsageError, match="weights of 3 tasks are remembered"):
        simplex_share(torch.ones(3) / 3, Step(TASKS[:2], (0, 1)))


def test_the_active_tasks_share_what_they_have_together() -> None:
    weights = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    step = Step(TASKS, (0, 2))
    torch.testing.assert_close(simplex_share(weights, step), torch.tensor([0.4, 0.6]).double())
    moved = with_share(weights, torch.tensor([1.0, 0.0]).double(), step)
    torch.testing.assert_close(moved, torch.tensor([0.5, 0.5, 0.0]).double())
    nothing = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)
    assert simplex_share(nothing, step).tolist() == [0.5, 0.5]
    assert with_share(nothing, simplex_share(nothing, step), step).tolist() == [0.0, 1.0, 0.0]
    assert with_share(None, torch.tensor([1.0, 0.0]).double(), step).sum() == pytest.approx(1.0)
