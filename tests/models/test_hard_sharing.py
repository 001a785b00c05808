"""Hard sharing: shapes, what is shared, and the registry."""

from __future__ import annotations

import pytest
import torch

from mtobal import models
from mtobal.errors import UsageError
from mtobal.tasks import Classification

TASKS = (Classification("left", num_classes=10), Classification("right", num_classes=3))


@pytest.mark.parametrize("shape", [(1, 11, 11), (3, 8, 16), (1, 3, 3)])
def test_every_task_gets_its_output(shape: tuple[int, int, int]) -> None:
    model = models.build("hard_sharing", shape, TASKS, channels=[4, 8], features=6)
    outputs = model(torch.zeros(5, *shape))
    assert {task: tuple(output.shape) for task, output in outputs.items()} == {"left": (5, 10), "right": (5, 3)}


def test_the_encoder_is_shared_and_each_decoder_is_its_task_s_own() -> None:
    model = models.build("hard_sharing", (1, 8, 8), TASKS, channels=[4], features=6)
    loss = model(torch.rand(5, 1, 8, 8))["left"].square().sum()
    loss.backward()
    reached = {name.rsplit(".", 1)[0] for name, p in model.named_parameters() if p.grad is not None}
    assert reached == {"encoder.layers.0", "encoder.layers.3", "decoders.left"}


def test_under_one_seed_the_encoder_starts_alike_for_any_tasks() -> None:
    encoders = []
    for tasks in (TASKS, TASKS[:1], TASKS[1:]):
        torch.manual_seed(0)
        encoders.append(models.build("hard_sharing", (1, 8, 8), tasks).encoder.state_dict())
    for other in encoders[1:]:
        assert all(torch.equal(value, other[name]) for name, value in encoders[0].items())


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("hard_sharig", {}, "unknown model 'hard_sharig': did you mean 'hard_sharing'"),
        ("hard_sharing", {"chanels": [1]}, "did you mean 'channels'"),
        ("hard_sharing", {"channels": 4}, "channels should be a list, each item a whole number, not 4"),
        ("hard_sharing", {"channels": [4, "8"]}, "channels should be a whole number, not '8'"),
    ],
)
def test_wrong_names_and_options_are_named(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        models.build(name, (1, 8, 8), TASKS, **options)


def test_an_encoder_of_images_refuses_other_inputs() -> None:
    with pytest.raises(UsageError, match=r"ConvEncoder reads images .* not inputs of shape \(8,\)"):
        models.build("hard_sharing", (8,), TASKS)
