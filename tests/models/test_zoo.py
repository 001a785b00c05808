"""Every model of the zoo: what it declares is what its graph says."""

from __future__ import annotations

import pytest
import torch

from mtobal import models
from mtobal.errors import UsageError
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


@pytest.mark.parametrize("name", SMALL)
def test_a_size_of_zero_is_refused_by_its_name(name: str) -> None:
    shape, tasks, options = SMALL[name]
    sizes = {**options, **options.get("base_options", {})}
    sizes = {option: size for option, size in sizes.items() if isinstance(size, int | list)}
    for option, size in sizes.items():
        zero = {option: [*size[:-1], 0] if isinstance(size, list) else 0}
        wrong = {**options, **(zero if option in options else {"base_options": zero})}
        with pytest.raises(UsageError, match=f"{option} should be (1 or more|one of 18, 34, 50, 101), not 0"):
            models.build(name, shape, tasks, **wrong)


@pytest.mark.parametrize("name", [name for name, (shape, _, _) in SMALL.items() if len(shape) == 3])
def test_vectors_in_the_place_of_images_are_refused(name: str, timm: list[dict[str, object]]) -> None:
    _, tasks, options = SMALL[name]
    for shape in ((8,), (0, 32, 32)):
        with pytest.raises(UsageError, match=r"reads .*, not inputs of shape|model 'mlp' has no option"):
            models.build(name, shape, tasks, **options)


def test_a_model_of_no_tasks_is_refused() -> None:
    with pytest.raises(UsageError, match="model 'nddr': expected one or more tasks, got none"):
        models.build("nddr", (3, 32, 32), [])
