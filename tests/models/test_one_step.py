"""One training step of every model and of every strategy: whatever a loss reaches has a finite gradient.

Not all pairs: each model takes a step with one strategy of every kind (what place it fills, what it reads, whether
it looks at the batch again or ahead), and each strategy with two models, one whose tasks read a common
representation and one in which each has its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import mtobal
from mtobal import Balancer, UsageError, models
from mtobal.models.base import MultiTaskModel
from mtobal.strategies import Card, build
from mtobal.tasks import Classification, Segmentation, Task
from zoo import SMALL, sample_inputs

CARDS = mtobal.strategies.available()
TASKS = ("seg", "depth", "normal")  # those of the cards' examples

ONE_OF_A_KIND = ("uw", "famo", "auto_lambda", "pcgrad", "graddrop", "mgda_ub", "sam", "rep_mtl", "visatb_online")
COMMON, OWN = "hard_sharing", "cgc"

PAIRS = [(model, strategy) for model in models.available() for strategy in ONE_OF_A_KIND]
PAIRS += [(model, strategy) for model in (COMMON, OWN) for strategy in CARDS if strategy not in ONE_OF_A_KIND]

# They read one tensor that belongs to all tasks.
READ_A_COMMON_REPRESENTATION = {"aligned_mtl_ub", "ldc_mtl", "mgda_ub", "rep_mtl"}


def small(name: str) -> tuple[MultiTaskModel, list[Task]]:
    """The model with three tasks, under the names that the examples of the strategies know."""
    shape, (first, second), options = SMALL[name]
    tasks = [replace(task, name=own) for task, own in zip((first, second, first), TASKS, strict=True)]
    torch.manual_seed(0)
    model = models.build(name, shape, tasks, **options)
    assert isinstance(model, MultiTaskModel)
    return model, tasks


def target(task: Task, output: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    if isinstance(task, Classification | Segmentation):
        return torch.randint(task.num_classes, output[:, 0].shape, generator=generator)
    return 0.5 + torch.rand(output.shape, generator=generator)


def reached(losses: Iterable[Tensor], model: MultiTaskModel) -> dict[str, bool]:
    names, parameters = zip(*model.named_parameters(), strict=True)
    gradients = torch.autograd.grad(torch.stack(list(losses)).sum(), parameters, allow_unused=True)
    return {name: gradient is not None for name, gradient in zip(names, gradients, strict=True)}


def kind(card: Card) -> tuple[object, ...]:
    strategy = build(card.example)
    return card.place, card.reads, strategy.looks_again, strategy.looks_ahead


def test_every_kind_of_strategy_meets_every_model() -> None:
    kinds = {kind(card) for card in CARDS.values()}
    assert {kind(CARDS[name]) for name in ONE_OF_A_KIND} == kinds
    assert set(SMALL) == set(models.available())


@pytest.mark.usefixtures("timm")
@pytest.mark.parametrize(("name", "strategy"), PAIRS)
def test_one_step(name: str, strategy: str) -> None:
    model, tasks = small(name)
    inputs = sample_inputs(name)
    representation = model.encode(inputs)
    common = isinstance(representation, Tensor)
    outputs = model.decode(representation, inputs)
    targets = {task.name: target(task, outputs[task.name]) for task in tasks}
    expected = reached([task.loss(outputs[task.name], targets[task.name]) for task in tasks], model)

    def closure() -> object:
        representation = model.encode(inputs)
        outputs = model.decode(representation, inputs)
        losses = {task.name: task.loss(outputs[task.name], targets[task.name]) for task in tasks}
        return (losses, representation) if common else losses

    balancer = Balancer(CARDS[strategy].example, model, tasks=TASKS)
    if CARDS[strategy].place == "revision":
        balancer.revise(dict.fromkeys(TASKS, 1.0), dict.fromkeys(TASKS, 0.5), dict.fromkeys(TASKS, True))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    if strategy in READ_A_COMMON_REPRESENTATION and not common:
        with pytest.raises(UsageError, match=f"{strategy} reads the shared representation"):
            balancer.step(closure, optimizer)
        return
    balancer.step(closure, optimizer)
    assert not balancer.skipped
    for parameter, value in model.named_parameters():
        assert (value.grad is not None) == expected[parameter], parameter
        assert value.grad is None or value.grad.isfinite().all(), parameter
        assert value.isfinite().all(), parameter
    assert any(value.grad is not None and value.grad.count_nonzero() for value in model.shared_parameters())
