"""What must hold for every registered strategy; a new one is covered by being registered."""

from __future__ import annotations

import copy
import itertools
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import mtobal
from mtobal.gradients import LookAhead
from mtobal.ops import Jacobian
from mtobal.strategies import Card, Composition, JacobianAggregation, Step, Validation, build

TASKS = ("seg", "depth", "normal")
CARDS = mtobal.strategies.available()
every_strategy = pytest.mark.parametrize("card", CARDS.values(), ids=CARDS)


def example(card: Card) -> Composition:
    """Build a strategy anew: no memory, its seed at the start."""
    return build(card.example)


def direction(strategy: Composition, jacobian: Tensor, losses: Tensor, tasks: tuple[str, ...] = TASKS) -> Tensor:
    """Take one step on given gradients, learning included."""
    # The rows serve as samples of a representation for the strategies that read one.
    step = Step(tasks, tuple(range(len(tasks))), losses, representation=jacobian[0].reshape(2, -1))
    rows = jacobian.double()
    ahead = surroundings(jacobian, losses, tasks)
    strategy.look_ahead(ahead)
    loss_weights = strategy.loss_weights(step)
    assert loss_weights.dtype == losses.dtype
    if isinstance(strategy.aggregation, JacobianAggregation):
        found = strategy.aggregation_direction(as_jacobian(jacobian), step, loss_weights)
        moved = torch.cat(found.blocks).double()
        if found.weights is not None:
            weights = found.weights.double() * loss_weights.double()
            torch.testing.assert_close(moved, weights @ rows, rtol=1e-4, atol=1e-6)
    else:
        moved = (loss_weights.double() * strategy.aggregation_weights(rows @ rows.T, step, loss_weights)) @ rows
    strategy.update(step, loss_weights)
    if strategy.looks_again:
        strategy.look_again(replace(step, losses=0.9 * losses))
    return moved if ahead.extra is None else moved + ahead.extra[0].double()


def surroundings(jacobian: Tensor, losses: Tensor, tasks: tuple[str, ...]) -> LookAhead:
    """Linear losses of these values and gradients, and curved ones for the validation."""
    point = nn.Parameter(torch.zeros_like(jacobian[0]))

    def run(curvature: float) -> tuple[tuple[str, ...], dict[str, Tensor]]:
        values = losses + jacobian @ point + curvature * (point - 1.0).square().sum()
        return tasks, dict(zip(tasks, values.unbind(), strict=True))

    return LookAhead(None, torch.optim.SGD([point], lr=0.1), lambda: run(0.0), lambda: run(0.5))


def as_jacobian(jacobian: Tensor) -> Jacobian:
    """Cut the columns into two parameters."""
    return Jacobian((jacobian[:, :2], jacobian[:, 2:]), ("encoder.weight", "encoder.bias"))


@pytest.fixture
def jacobian() -> Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.randn(3, 6, generator=generator, dtype=torch.float64)


@pytest.fixture
def losses() -> Tensor:
    return torch.tensor([1.5, 0.25, 3.0], dtype=torch.float64)


@every_strategy
def test_permuting_the_tasks_permutes_the_weights(card: Card, jacobian: Tensor, losses: Tensor) -> None:
    # Of a random strategy only the distribution is symmetric, except where no draw matters: for two tasks.
    places = (example(card).loss_weighting, example(card).aggregation)
    tasks = 2 if any(place is not None and place.generator is not None for place in places) else 3
    expected = direction(example(card), jacobian[:tasks], losses[:tasks], TASKS[:tasks]) if tasks == 2 else None
    for order in itertools.permutations(range(tasks)):
        permuted = tuple(TASKS[task] for task in order)
        actual = direction(example(card), jacobian[list(order)], losses[list(order)], permuted)
        expected = actual if expected is None else expected
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-12)


@every_strategy
@pytest.mark.parametrize("factor", [2.0**-13, 3.0, 1e4])
def test_scaling_all_gradients_scales_the_direction_as_the_card_says(
    card: Card, factor: float, jacobian: Tensor, losses: Tensor
) -> None:
    for plain, scaled in several_steps(card, factor, jacobian, losses):
        if card.degree is None:
            assert torch.isfinite(scaled).all()
        else:
            torch.testing.assert_close(scaled, factor**card.degree * plain, rtol=1e-9, atol=0)


@pytest.mark.parametrize(
    # The gradients of a perturbation are taken at points that `direction` does not move to.
    "card",
    [card for card in CARDS.values() if card.degree is None and card.place != "perturbation"],
    ids=lambda card: card.name,
)
def test_a_card_without_a_degree_has_none(card: Card, jacobian: Tensor, losses: Tensor) -> None:
    factor = 2.0**-13
    steps = several_steps(card, factor, jacobian, losses)
    for degree in (0.0, 1.0):
        assert not all(
            torch.allclose(scaled, factor**degree * plain, rtol=1e-9, atol=0) for plain, scaled in steps
        )


def several_steps(card: Card, factor: float, jacobian: Tensor, losses: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Directions of some steps in turn, and those where all gradients are scaled."""
    first, second = example(card), example(card)
    return [
        (
            direction(first, jacobian.roll(number, dims=1), (number + 1) * losses),
            direction(second, factor * jacobian.roll(number, dims=1), (number + 1) * losses),
        )
        for number in range(3)
    ]


@every_strategy
def test_float32_and_float64_agree(card: Card, jacobian: Tensor, losses: Tensor) -> None:
    single = direction(example(card), jacobian.float(), losses.float())
    torch.testing.assert_close(single, direction(example(card), jacobian, losses), rtol=1e-4, atol=1e-5)


@every_strategy
def test_same_seed_and_state_give_the_same(card: Card, jacobian: Tensor, losses: Tensor) -> None:
    first, second = example(card), example(card)
    for number in range(5):
        moved = jacobian.roll(number, dims=0)
        assert torch.equal(direction(first, moved, losses), direction(second, moved, losses))


@every_strategy
def test_state_continues_bit_for_bit_in_a_fresh_instance(card: Card, jacobian: Tensor, losses: Tensor) -> None:
    original = example(card)
    for number in range(4):
        direction(original, jacobian.roll(number, dims=1), losses * (number + 1))
        original.end_epoch()
    resumed = example(card)
    resumed.load_state_dict(copy.deepcopy(original.state_dict()))
    for number in range(4):
        moved = jacobian.roll(-number, dims=1)
        assert torch.equal(direction(original, moved, losses), direction(resumed, moved, losses))


@every_strategy
def test_state_is_plain_enough_for_a_safe_checkpoint(
    card: Card, jacobian: Tensor, losses: Tensor, tmp_path
) -> None:
    strategy = example(card)
    direction(strategy, jacobian, losses)
    torch.save(strategy.state_dict(), tmp_path / "state.pt")
    example(card).load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))


@every_strategy
@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(
        st.lists(st.sampled_from([0.0, 1.0, -1.0, 1e-6, -1e6, 0.3]), min_size=4, max_size=4),
        min_size=3,
        max_size=3,
    ),
    losses=st.lists(st.floats(0.0, 1e6, width=32), min_size=3, max_size=3),
)
def test_finite_for_finite_input(card: Card, rows: list[list[float]], losses: list[float]) -> None:
    """Zero, opposite, duplicate and dependent rows included."""
    strategy = example(card)
    for _ in range(3):
        found = direction(strategy, torch.tensor(rows, dtype=torch.float64), torch.tensor(losses))
        assert torch.isfinite(found).all()


@pytest.mark.parametrize(
    "card", [card for card in CARDS.values() if card.non_conflicting], ids=lambda card: card.name
)
@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_a_non_conflicting_strategy_never_points_against_a_task(card: Card, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    jacobian = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    found = direction(example(card), jacobian, torch.ones(3))
    products = jacobian @ found
    assert products.min() >= -1e-10 * jacobian.norm(dim=1).max() * found.norm()


@every_strategy
def test_scale_sum_is_the_scale_of_the_plain_sum(card: Card) -> None:
    if card.place != "gradient aggregation":
        assert "scale" not in card.options
        return
    name = card.name
    if card.scale == "own":
        with pytest.raises(mtobal.UsageError, match="scale of its own"):
            build(f"{name}(scale=sum)")
        return
    equal = torch.eye(1, 4, dtype=torch.float64).repeat(3, 1)
    native = direction(build(name), equal, torch.ones(3)).sum().item()
    summed = direction(build(f"{name}(scale=sum)"), equal, torch.ones(3)).sum().item()
    assert summed == pytest.approx(3 * native if card.scale == "mean" else native)
    # Up to a factor that a method puts on its direction, such as the rescaling of cagrad.
    assert summed == pytest.approx(3.0, rel=0.25)


@pytest.mark.parametrize(
    "card", [card for card in CARDS.values() if card.place == "gradient aggregation"], ids=lambda card: card.name
)
def test_heads_are_weighted_where_the_tasks_have_weights(card: Card) -> None:
    assert build(f"{card.name}(heads=raw)").aggregation.heads == "raw"
    if card.reads == "jacobian" and card.heads == "raw":
        with pytest.raises(mtobal.UsageError, match="has no task weights that the heads could get"):
            build(f"{card.name}(heads=weighted)")
    else:
        assert build(f"{card.name}(heads=weighted)").aggregation.heads == "weighted"


@pytest.mark.parametrize(
    "card",
    [card for card in CARDS.values() if card.place == "loss weighting" and card.scale != "own"],
    ids=lambda card: card.name,
)
def test_loss_weights_of_equal_losses_add_up_as_the_card_says(card: Card) -> None:
    strategy, losses = example(card), torch.full((3,), 2.0, dtype=torch.float64)
    for _ in range(3):
        step = Step(TASKS, (0, 1, 2), losses)
        total = strategy.loss_weights(step).sum().item()
        assert total == pytest.approx({"sum": 3.0, "mean": 1.0}[card.scale])
        strategy.update(step)
        if strategy.looks_again:
            strategy.look_again(step)
        strategy.end_epoch()


@every_strategy
def test_the_card_says_whether_anything_is_remembered(card: Card, jacobian: Tensor, losses: Tensor) -> None:
    def anything(state: object) -> bool:
        return any(map(anything, state.values())) if isinstance(state, dict) else state is not None

    strategy = example(card)
    for number in range(3):
        direction(strategy, jacobian.roll(number, dims=1), (number + 1) * losses)
        strategy.revise(Validation(TASKS, losses))
        strategy.end_epoch()
    # What f_mtl remembers is what the aggregation does that it wraps, and here is none.
    assert anything(strategy.state_dict()) == (card.state != "none" and card.name != "f_mtl")


@every_strategy
def test_the_card_is_complete(card: Card) -> None:
    # Only an aggregation can tell the shared parameters from the heads.
    assert card.heads == "weighted" or card.place == "gradient aggregation"
    for fact in (card.summary, card.when, card.paper, card.defaults_source, card.state, card.place, card.example):
        assert fact, f"{card.name}: {card}"
    build(card.example)
