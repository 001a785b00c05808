"""Every model of the zoo: what it declares is what its graph says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mtobal import models
from mtobal.gradients.partition import find_partition
from mtobal.models.base import MultiTaskModel
from mtobal.tasks import Classification, Depth, Segmentation, Task

DENSE: tuple[Task, ...] = (Segmentation("segmentation", num_classes=3), Depth("depth"))
LABELS: tuple[Task, ...] = (Classification("left", num_classes=2), Classification("right", num_classes=3))

SMALL: dict[str, tuple[tuple[int, ...], tuple[Task, ...], dict[str, Any]]] = {
    "deeplab": ((3, 32, 32), DENSE, {"depth": 18, "width": 4, "decoder_channels": 4}),
    "hard_sharing": ((1, 12, 12), LABELS, {"channels": [4, 4], "features": 8}),
    "mtan_segnet": ((3, 32, 32), DENSE, {"filters": [4, 8]}),
    "resnet": ((3, 16, 16), LABELS, {"width": 4}),
    "segnet": ((3, 32, 32), DENSE, {"filters": [4, 8]}),
}
"""Shape of an input, tasks and options of every model, as small as it goes."""


@pytest.fixture(params=models.available())
def model(request: pytest.FixtureRequest) -> MultiTaskModel:
    shape, tasks, options = SMALL[request.param]
    torch.manual_seed(0)
    built = models.build(request.param, shape, tasks, **options)
    assert isinstance(built, MultiTaskModel)
    return built


@pytest.fixture
def inputs(request: pytest.FixtureRequest) -> Tensor:
    shape = SMALL[request.node.callspec.params["model"]][0]
    return torch.rand(2, *shape, generator=torch.Generator().manual_seed(1))


def test_parameters_belong_to_whom_the_model_says(model: MultiTaskModel, inputs: Tensor) -> None:
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


def test_outputs_come_from_the_representation_alone(model: MultiTaskModel, inputs: Tensor) -> None:
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
