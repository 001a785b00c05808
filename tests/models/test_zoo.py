"""Every model of the zoo: what it declares is what its graph says."""

from __future__ import annotations

import pytest
import torch

from mtobal import models
from mtobal.gradients.partition import find_partition
from mtobal.models.base import Inputs, MultiTaskModel
from zoo import SMALL, sample_inputs


@pytest.fixture(params=models.available())
def model(request: pytest.FixtureRequest, timm: list[dict[str, object]]) -> MultiTaskModel:
    shape, tasks, options = SMALL[request.param]
    torch.manual_seed(0)
    built = models.build(request.param, shape, tasks, **options)
    assert isinstance(built, MultiTaskModel)
    return built


@pytest.fixture
def inputs(request: pytest.FixtureRequest) -> Inputs:
    return sample_inputs(request.node.callspec.params["model"])


def test_parameters_belong_to_whom_the_model_says(model: MultiTaskModel, inputs: Inputs) -> None:
    outputs = model(inputs)
    assert tuple(outputs) == model.tasks
    found = find_partition([output.square().sum() for output in outputs.values()], model.tasks, model)
    assert not found.unused
    assert {id(p) for p in found.shared.values()} == {id(p) for p in model.shared_parameters()}
    for task in model.tasks:
        assert {id(p) for p in found.own[task].values()} == {id(p) for p in model.task_parameters(task)}
    last = {id(p) for p in model.last_shared().parameters()}
    assert last
    assert last <= {id(p) for p in model.shared_parameters()}


def test_outputs_come_from_the_representation_alone(model: MultiTaskModel, inputs: Inputs) -> None:
    representation = model.encode(inputs)
    below = list(representation.values()) if isinstance(representation, dict) else [representation]
    cut = [each.detach().requires_grad_() for each in below]
    outputs = model.decode(dict(zip(model.tasks, cut, strict=True)) if len(cut) > 1 else cut[0], inputs)
    total = torch.stack([output.square().sum() for output in outputs.values()]).sum()
    shared = model.shared_parameters()
    assert all(
        gradient is None for gradient in torch.autograd.grad(total, shared, retain_graph=True, allow_unused=True)
    )
    assert all(gradient is not None for gradient in torch.autograd.grad(total, cut))
