"""The weights of each method are the derivatives of its objective by the losses."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mtobal.strategies.loss.cosmos import cosmos_weights
from mtobal.strategies.loss.famo import famo_gradient, famo_weights
from mtobal.strategies.loss.gls import geometric_weights
from mtobal.strategies.loss.igb_v1 import improvable_gap_weights
from mtobal.strategies.loss.imtl_l import impartial_loss_gradient
from mtobal.strategies.loss.ldc_mtl import discrepancy_gradient, discrepancy_weights
from mtobal.strategies.loss.pbi import boundary_intersection_weights
from mtobal.strategies.loss.si import scale_invariant_weights
from mtobal.strategies.loss.stch import log_tchebycheff_weights, smooth_tchebycheff_weights

NUM_TASKS = 4
FIXED = torch.tensor([0.7, 0.2, 1.9, 0.4], dtype=torch.float64)  # a preference, a base, a nadir, router outputs
BELOW = torch.tensor([-1.0, 0.01, 0.0, 0.02], dtype=torch.float64)  # an ideal point, lower bounds
LOGITS = torch.tensor([0.3, -1.2, 0.0, 0.8], dtype=torch.float64)


def angle(losses: Tensor) -> Tensor:
    return torch.cosine_similarity(FIXED, losses, dim=0)


def intersection(losses: Tensor) -> Tensor:
    unit = FIXED / FIXED.norm()
    along = (losses - BELOW) @ unit
    return along + 5.0 * (losses - BELOW - along * unit).norm()


def famo_objective(losses: Tensor) -> Tensor:
    shares, distances = LOGITS.softmax(0), losses - BELOW + 1e-8
    return (shares / (shares / distances).sum().detach() * distances.log()).sum()


def discrepancy(losses: Tensor, router: Tensor = FIXED) -> Tensor:
    weighted = router * losses
    return weighted.sum() / router.sum() + 0.05 * weighted.diff().abs().sum()


OBJECTIVES: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "gls": (geometric_weights, lambda x: x.prod() ** (1 / NUM_TASKS)),
    "si": (scale_invariant_weights, lambda x: x.log().sum()),
    "stch": (
        lambda x: smooth_tchebycheff_weights(x, FIXED, BELOW, 0.3),
        lambda x: 0.3 * (FIXED * (x - BELOW) / 0.3).logsumexp(0),
    ),
    "stch, log": (
        lambda x: log_tchebycheff_weights(x, FIXED, 0.3),
        lambda x: NUM_TASKS * 0.3 * ((x / FIXED).log() / 0.3).logsumexp(0),
    ),
    "igb_v1": (
        lambda x: improvable_gap_weights(x, FIXED),
        lambda x: (NUM_TASKS * (x / FIXED).softmax(0).detach() * x.log()).sum(),
    ),
    "famo": (lambda x: famo_weights(LOGITS, x, BELOW), famo_objective),
    "cosmos": (lambda x: cosmos_weights(x, FIXED, 3.0), lambda x: FIXED @ x - 3.0 * angle(x)),
    "pbi": (lambda x: boundary_intersection_weights(x, FIXED, BELOW, 5.0), intersection),
    "ldc_mtl": (lambda x: discrepancy_weights(x, torch.ones_like(x), FIXED, 0.05), discrepancy),
}

positive_losses = st.lists(st.floats(0.05, 50.0), min_size=NUM_TASKS, max_size=NUM_TASKS, unique=True)


@pytest.mark.parametrize("name", OBJECTIVES)
@settings(max_examples=40, deadline=None)
@given(values=positive_losses)
def test_weights_are_the_derivative_of_the_objective(name: str, values: list[float]) -> None:
    weights, objective = OBJECTIVES[name]
    losses = torch.tensor(values, dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(objective(losses), losses)
    torch.testing.assert_close(weights(losses.detach()), expected, rtol=1e-9, atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(before=positive_losses, after=positive_losses)
def test_learned_numbers_descend_their_objective(before: list[float], after: list[float]) -> None:
    one, two = torch.tensor([before, after], dtype=torch.float64)

    logits = LOGITS.clone().requires_grad_()
    improved = (one - BELOW + 1e-8).log() - (two - BELOW + 1e-8).log()
    (expected,) = torch.autograd.grad(logits.softmax(0) @ improved, logits)
    torch.testing.assert_close(famo_gradient(LOGITS, one, two, BELOW), expected, rtol=1e-9, atol=1e-12)

    (expected,) = torch.autograd.grad((logits.exp() * one - logits).sum(), logits)
    torch.testing.assert_close(impartial_loss_gradient(LOGITS, one), expected, rtol=1e-9, atol=1e-12)

    router = FIXED.clone().requires_grad_()
    (expected,) = torch.autograd.grad(discrepancy(one, router), router)
    found = discrepancy_gradient(one, FIXED, 0.05, detach_sum=False)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    gap = discrepancy(one, router) - router @ one / router.sum()
    (expected,) = torch.autograd.grad(router @ one / router.sum().detach() + gap, router)
    found = discrepancy_gradient(one, FIXED, 0.05, detach_sum=True)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_the_smooth_maximum_is_safe_where_exponentials_overflow() -> None:
    losses = torch.tensor([1e6, 1e6 - 1.0, 0.0])
    weights = smooth_tchebycheff_weights(losses, torch.ones(3), torch.zeros(3), mu=0.1)
    torch.testing.assert_close(weights.sum(), torch.tensor(1.0))
    assert weights[0] > 0.99


def test_a_product_of_losses_that_leaves_the_number_range() -> None:
    for value in (1e-15, 1e15):
        losses = torch.full((30,), value)
        torch.testing.assert_close(geometric_weights(losses), torch.full((30,), 1 / 30))
    torch.testing.assert_close(geometric_weights(torch.zeros(3)), torch.full((3,), 1 / 3))


def test_pointing_along_the_preference_there_is_nothing_to_turn() -> None:
    preference = torch.tensor([0.1, 0.3, 0.7])
    for length in (1e-20, 3.0, 1e20):
        weights = boundary_intersection_weights(length * preference, preference, torch.zeros(3), 5.0)
        torch.testing.assert_close(weights, preference / preference.norm())
    torch.testing.assert_close(cosmos_weights(torch.zeros(3), preference, 3.0), preference)
    torch.testing.assert_close(cosmos_weights(3.0 * preference, preference, 3.0), preference)
