from __future__ import annotations

import pytest
import torch
from torch import nn

from mtobal import UsageError
from mtobal.models.ibcl import Gaussian, PreferenceAveraging


def gaussian(*means: float, scale: float = 0.5) -> Gaussian:
    mean = torch.tensor(means)
    return Gaussian({"weight": mean}, {"weight": torch.full_like(mean, scale)})


@pytest.mark.parametrize("mass", [0.01, 0.5, 0.99])
def test_an_interval_holds_its_mass(mass: float) -> None:
    lower, upper = gaussian(1.0, -2.0).interval(mass)
    normal = torch.distributions.Normal(torch.tensor([1.0, -2.0]), 0.5)
    held = normal.cdf(upper["weight"]) - normal.cdf(lower["weight"])
    torch.testing.assert_close(held, torch.full((2,), mass), atol=1e-5, rtol=0)


def test_samples_lie_in_the_interval_and_follow_the_generator() -> None:
    known = gaussian(*torch.linspace(-1, 1, 50).tolist())
    lower, upper = known.interval(0.9)
    drawn = [known.sample(0.9, torch.Generator().manual_seed(seed))["weight"] for seed in (1, 1, 2)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert ((drawn[0] >= lower["weight"]) & (drawn[0] <= upper["weight"])).all()


def test_the_solutions_of_a_task_share_its_preference() -> None:
    knowledge = PreferenceAveraging()
    knowledge.add("left", [gaussian(0.0), gaussian(1.0, scale=1.0)])
    knowledge.add("right", [gaussian(4.0)])
    found = knowledge.model_for({"left": 1.0, "right": 3.0})
    assert found.mean["weight"].item() == pytest.approx(0.125 * 0 + 0.125 * 1 + 0.75 * 4)
    assert found.scale["weight"].item() == pytest.approx(0.125 * 0.5 + 0.125 * 1.0 + 0.75 * 0.5)
    assert knowledge.model_for({"right": 2.0}).mean["weight"].item() == 4.0


def test_a_solution_that_is_known_is_not_stored_again() -> None:
    knowledge = PreferenceAveraging(tolerance=0.01)
    knowledge.add("left", [gaussian(0.0)])
    knowledge.add("right", [gaussian(0.005), gaussian(1.0)])
    assert len(knowledge.stored) == 2
    assert knowledge.members["right"] == [0, 1]
    assert knowledge.model_for({"right": 1.0}).mean["weight"].item() == pytest.approx(0.5)


def test_the_average_of_linear_models_is_the_model_of_the_average_output() -> None:
    models = [nn.Linear(3, 2) for _ in range(2)]
    knowledge = PreferenceAveraging()
    for number, model in enumerate(models):
        knowledge.add(str(number), [Gaussian.at(model.state_dict())])
    joined = nn.Linear(3, 2)
    joined.load_state_dict(knowledge.model_for({"0": 0.3, "1": 0.7}).mean)
    inputs = torch.randn(5, 3)
    torch.testing.assert_close(joined(inputs), 0.3 * models[0](inputs) + 0.7 * models[1](inputs))
    sampled = knowledge.model_for({"0": 0.3, "1": 0.7}).sample(0.99)
    torch.testing.assert_close(sampled["weight"], joined.weight.detach())  # certain of its parameters


def test_a_counter_of_batches_is_no_distance() -> None:
    first, second = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    second.num_batches_tracked += 5
    solutions = [Gaussian.at(norm.state_dict()) for norm in (first, second)]
    assert solutions[0].distance(solutions[1]) == 0
    second.load_state_dict(solutions[0].sample(0.5))
    assert second.num_batches_tracked == 0


def test_wrong_use() -> None:
    knowledge = PreferenceAveraging()
    knowledge.add("left", [gaussian(0.0)])
    with pytest.raises(UsageError, match="other parameters"):
        knowledge.add("right", [Gaussian.at({"bias": torch.ones(1)})])
    with pytest.raises(UsageError, match="at least one solution"):
        knowledge.add("left", [gaussian(1.0)])
    with pytest.raises(UsageError, match="no solution is known of task 'up'"):
        knowledge.model_for({"up": 1.0})
    with pytest.raises(UsageError, match="nor all zero"):
        knowledge.model_for({"left": 0.0})
    with pytest.raises(UsageError, match="mass of an interval"):
        gaussian(0.0).interval(1.0)
