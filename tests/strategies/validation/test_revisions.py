"""What must hold for every strategy that reads validations; a new one is covered by being registered."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch

import mtobal
from mtobal import UsageError
from mtobal.strategies import Card, Composition, Step, Validation, build

TASKS = ("seg", "depth", "normal")
CARDS = {name: card for name, card in mtobal.strategies.available().items() if card.place == "revision"}
# Beside the defaults, options under which each has something to say after a few validations.
SPECS = [
    *(card.example for card in CARDS.values()),
    "coba(warm_up=3, window=6)",
    "hypervolume(objectives=metrics)",
]
every_spec = pytest.mark.parametrize("spec", SPECS)


def validations(count: int = 10) -> list[Validation]:
    generator = torch.Generator().manual_seed(3)
    falls = torch.tensor([0.9, 0.7, 0.99], dtype=torch.float64)
    losses = torch.tensor([2.0, 0.3, 50.0], dtype=torch.float64)
    found = []
    for number in range(count):
        noise = 1 + 0.05 * torch.rand(3, generator=generator, dtype=torch.float64)
        now = losses * falls**number * noise
        found.append(Validation(TASKS, now, torch.stack([-now[0], 1 / now[1], now[2]]), (True, True, False)))
    return found


def permuted(validation: Validation, order: tuple[int, ...]) -> Validation:
    assert validation.metrics is not None
    assert validation.higher_is_better is not None
    return Validation(
        tuple(validation.tasks[task] for task in order),
        validation.losses[list(order)],
        validation.metrics[list(order)],
        tuple(validation.higher_is_better[task] for task in order),
    )


def weights(strategy: Composition, tasks: tuple[str, ...] = TASKS) -> torch.Tensor:
    return strategy.loss_weights(Step(tasks, (0, 1, 2), torch.ones(3, dtype=torch.float64)))


@every_spec
def test_permuting_the_tasks_permutes_the_weights(spec: str) -> None:
    expected = build(spec)
    for validation in validations():
        expected.revise(validation)
    for order in itertools.permutations(range(3)):
        strategy = build(spec)
        for validation in validations():
            strategy.revise(permuted(validation, order))
        tasks = tuple(TASKS[task] for task in order)
        torch.testing.assert_close(weights(strategy, tasks), weights(expected)[list(order)], rtol=1e-9, atol=1e-12)


@every_spec
def test_state_continues_bit_for_bit_in_a_fresh_instance(spec: str, tmp_path) -> None:
    whole, resumed = build(spec), build(spec)
    for validation in validations()[:5]:
        whole.revise(validation)
    torch.save(copy.deepcopy(whole.state_dict()), tmp_path / "state.pt")
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(weights(whole), weights(resumed))
    for validation in validations()[5:]:
        whole.revise(validation)
        resumed.revise(validation)
        assert torch.equal(weights(whole), weights(resumed))


@every_spec
@pytest.mark.parametrize("factor", [0.0, 1.0, 1e6, 1e-9])
def test_finite_for_finite_input(spec: str, factor: float) -> None:
    strategy = build(spec)
    for validation in (*validations(), *reversed(validations())):
        strategy.revise(
            Validation(TASKS, factor * validation.losses, factor * validation.metrics, validation.higher_is_better)
        )
        found = weights(strategy)
        assert found.isfinite().all()
        assert (found >= 0).all()


@every_spec
def test_weights_multiply_those_of_a_loss_weighting(spec: str) -> None:
    alone, joined = build(spec), build(spec + "+static(weights={seg: 1, depth: 0.5, normal: 2})")
    for validation in validations():
        alone.revise(validation)
        joined.revise(validation)
    torch.testing.assert_close(weights(joined), weights(alone) * torch.tensor([1.0, 0.5, 2.0]))


@every_spec
def test_an_absent_task_takes_nothing_from_the_others(spec: str) -> None:
    strategy = build(spec)
    for validation in validations():
        strategy.revise(validation)
    step = Step(TASKS, (0, 2), torch.ones(2, dtype=torch.float64))
    assert torch.equal(strategy.loss_weights(step), weights(strategy)[[0, 2]])


@pytest.mark.parametrize("card", CARDS.values(), ids=CARDS)
def test_before_any_validation_tasks_weigh_alike(card: Card) -> None:
    found = weights(build(card.example))
    assert (found == found[0]).all()
    expected = {"sum": 3.0, "mean": 1.0}.get(card.scale)
    assert expected is None or found.sum().item() == pytest.approx(expected)


def test_they_scale_the_rows_of_every_aggregation() -> None:
    jacobian = torch.randn(3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    preference = torch.tensor([1.0, 0.5, 2.0], dtype=torch.float64)
    revision = f"hypervolume(preference={preference.tolist()})"
    for aggregation in ("mgda", "trimmed_mean"):
        expected = mtobal.aggregate(preference[:, None] * jacobian, aggregation)
        torch.testing.assert_close(mtobal.aggregate(jacobian, f"{revision}+{aggregation}"), expected)


def test_two_revisions_do_not_go_together() -> None:
    with pytest.raises(UsageError, match="'coba' and 'hypervolume' both fill the place 'revision'"):
        build("coba+hypervolume")


@pytest.mark.parametrize("spec", ["coba", "visatb_online"])
def test_a_negative_validation_loss_is_refused(spec: str) -> None:
    with pytest.raises(UsageError, match=f"{spec} needs validation losses that are not negative"):
        build(spec).revise(Validation(TASKS, torch.tensor([1.0, -1.0, 2.0], dtype=torch.float64)))


def test_another_number_of_tasks_is_refused() -> None:
    strategy = build("visatb_online")
    strategy.revise(validations()[0])
    with pytest.raises(UsageError, match="visatb_online holds 3 tasks, but this validation has 2"):
        strategy.revise(Validation(TASKS[:2], torch.ones(2, dtype=torch.float64)))
