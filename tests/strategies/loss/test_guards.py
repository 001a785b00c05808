"""Losses that a method has no formula for, and options that make no sense."""

from __future__ import annotations

import pytest
import torch

from mtobal import UsageError
from mtobal.strategies import Step, build

LOGARITHMIC = ["gls", "si", "stch", "dwa", "dwa(average=window)", "igb_v1", "igb_v2", "go4align", "ldc_mtl"]
TASKS = ("seg", "depth")


@pytest.mark.parametrize("spec", LOGARITHMIC)
def test_a_negative_loss_is_refused_by_name(spec: str) -> None:
    step = Step(TASKS, (0, 1), torch.tensor([1.0, -0.25]), torch.ones(2, 3))
    name = spec.split("(")[0]
    message = rf"{name} needs losses that are not negative, but got that of task 'depth' \(-0.25\)"
    with pytest.raises(UsageError, match=message):
        build(spec).loss_weights(step)


@pytest.mark.parametrize("spec", [*LOGARITHMIC, "famo", "imtl_l", "cosmos", "pbi", "stch(form=paper)"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_losses_of_zero_get_finite_weights(spec: str, dtype: torch.dtype) -> None:
    for values in ([0.0, 3.0], [0.0, 0.0]):
        strategy = build(spec)
        for _ in range(3):
            step = Step(TASKS, (0, 1), torch.tensor(values, dtype=dtype), torch.ones(2, 3, dtype=dtype))
            weights = strategy.loss_weights(step)
            assert weights.isfinite().all()
            assert weights.dtype == dtype
            strategy.update(step)
            if strategy.looks_again:
                strategy.look_again(step)
            strategy.end_epoch()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("dwa(temperature=0)", "dwa: the temperature must be positive, not 0"),
        ("dwa(window=0)", "dwa: a window has at least one step"),
        ("stch(mu=0)", "stch: mu must be positive"),
        ("stch(warmup_epochs=-1)", "stch: warmup_epochs must not be negative"),
        ("stch(ideal=[0, 1])", "belong to form=paper"),
        ("imtl_l(lr=0)", "imtl_l: the learning rate must be positive"),
        ("uw(lr=-1)", "uw: the learning rate must be positive"),
        ("famo(gamma=-1)", "famo: the decay must not be negative"),
        ("igb_v1(base_epoch=-1)", "igb_v1: base_epoch must not be negative"),
        ("go4align(num_groups=0)", "go4align: num_groups must be at least one"),
        ("go4align(step_size=-1)", "go4align: the step size must not be negative"),
        ("cosmos(penalty=-1)", "cosmos: the penalty must not be negative"),
        ("cosmos(preference=[0, 0])", "cosmos: preference must not be all zero"),
        ("cosmos(preference=[1, -1])", "cosmos: preference must be finite and at least 0"),
        ("pbi(theta=-1)", "pbi: theta must not be negative"),
        ("pbi(ideal=[0, inf])", "pbi: ideal must be finite"),
        ("static(weights=[1, -1])", "static: weights must be finite and at least 0"),
        ("static(weights=[0, 0])", "static: weights must not be all zero"),
        ("ldc_mtl(penalty=-1)", "ldc_mtl: the penalty must not be negative"),
        ("ldc_mtl(clamp=[0.5, 0.2])", "ldc_mtl: clamp must be two rising numbers"),
    ],
)
def test_options_that_make_no_sense_are_refused(spec: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build(spec)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("cosmos(preference=[1, 2, 3])", r"cosmos: preference has 3 numbers for 2 tasks \(seg, depth\)"),
        ("pbi(preference={sge: 1, depth: 2})", "unknown task in pbi: preference 'sge': did you mean 'seg'"),
        ("famo(min_losses={seg: 0.5})", "famo: min_losses has no number for 'depth'"),
    ],
)
def test_numbers_by_task_name_the_tasks(spec: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build(spec).loss_weights(Step(TASKS, (0, 1), torch.tensor([1.0, 2.0])))


def test_numbers_by_task_follow_the_names_and_the_tasks_at_hand() -> None:
    by_name, in_order = build("cosmos(preference={depth: 2, seg: 1})"), build("cosmos(preference=[1, 2])")
    for active in ((0, 1), (1,)):
        step = Step(TASKS, active, torch.tensor([1.0, 3.0])[list(active)])
        assert torch.equal(by_name.loss_weights(step), in_order.loss_weights(step))
