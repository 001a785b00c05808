from __future__ import annotations

import pytest
import torch

import mtobal
from mtobal import UsageError
from mtobal.strategies import Step, build
from mtobal.strategies.gradient import CRMOGM, MGDA


def gramian(seed: int, tasks: int = 3) -> torch.Tensor:
    rows = torch.randn(tasks, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return rows @ rows.T


@pytest.mark.parametrize("inner", ["mgda", "mgda(normalization=l2)", "pcgrad(seed=3)", "upgrad(scale=sum)"])
def test_it_is_the_moving_average_of_the_inner_weights(inner: str) -> None:
    smoothed, plain = build({"cr_mogm": {"inner": inner, "alpha": 0.75}}), build(inner)
    average = None
    for number in range(5):
        weights = mtobal.weights(gramian(number), plain)
        average = weights if average is None else 0.75 * average + 0.25 * weights
        torch.testing.assert_close(mtobal.weights(gramian(number), smoothed), average)


def test_the_inner_spec_is_read_from_text_and_from_yaml() -> None:
    for spec in (
        "cr_mogm(inner=mgda(normalization=l2), alpha=0.5)",
        {"cr_mogm": {"inner": {"mgda": {"normalization": "l2"}}, "alpha": 0.5}},
        {"cr_mogm": {"inner": "mgda(normalization=l2)"}},
    ):
        aggregation = build(spec).aggregation
        assert isinstance(aggregation, CRMOGM)
        assert isinstance(aggregation.inner, MGDA)
        assert aggregation.inner.normalization == "l2"


def test_a_task_that_sits_out_keeps_its_average_and_a_new_one_starts_from_its_weight() -> None:
    strategy = CRMOGM(alpha=0.5)
    names = ("a", "b", "c")

    def weigh(active: tuple[int, ...], seed: int) -> torch.Tensor:
        step = Step(names, active)
        weights = strategy.weights(gramian(seed, len(active)), step)
        strategy.update(step)
        return weights

    first = weigh((0, 1), 0)
    torch.testing.assert_close(first, mtobal.weights(gramian(0, 2), "mgda"))
    second = weigh((1, 2), 1)
    inner = mtobal.weights(gramian(1, 2), "mgda")
    torch.testing.assert_close(second, torch.stack([(first[1] + inner[0]) / 2, inner[1]]))
    assert strategy.average is not None
    torch.testing.assert_close(strategy.average, torch.stack([first[0], second[0], second[1]]))


def test_solving_without_a_step_learns_nothing() -> None:
    strategy = CRMOGM(alpha=0.5)
    mtobal.weights(gramian(0), strategy)
    step = Step.of(3)
    once = strategy.weights(gramian(1), step)
    torch.testing.assert_close(strategy.weights(gramian(1), step), once)


def test_the_state_of_the_inner_aggregation_is_part_of_its_own() -> None:
    original, resumed = CRMOGM(inner="pcgrad"), CRMOGM(inner="pcgrad")
    for number in range(3):
        mtobal.weights(gramian(number), original)
    resumed.load_state_dict(original.state_dict())
    for number in range(3):
        assert torch.equal(mtobal.weights(gramian(number), original), mtobal.weights(gramian(number), resumed))


def test_scale_and_heads_are_those_of_the_inner_aggregation() -> None:
    assert CRMOGM(inner="mgda").heads == "weighted"
    assert CRMOGM(inner="pcgrad").heads == "raw"
    assert CRMOGM(inner="pcgrad", heads="weighted").heads == "weighted"
    eye = torch.eye(3, dtype=torch.float64)
    for inner in ("mgda", "mgda(scale=sum)", "pcgrad"):
        found = mtobal.weights(eye, {"cr_mogm": {"inner": inner, "scale": "sum"}})
        assert found.sum() == pytest.approx(3.0)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("cr_mogm(inner=uw)", "'uw' is none"),
        ("cr_mogm(inner=uw+mgda)", "'uw\\+mgda' is none"),
        ("cr_mogm(inner=mgdaa)", "did you mean 'mgda'"),
        ("cr_mogm(alpha=1.5)", "alpha must lie between 0 and 1"),
    ],
)
def test_wrong_use_is_refused(spec: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build(spec)
