"""The restoration network: weights that come from the picture, and what is shared without them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from mtobal import models
from mtobal.errors import UsageError
from mtobal.models import TATNetwork
from mtobal.models.tat_network import AdaptiveDepthwise
from mtobal.tasks import Depth, Restoration, Task

TASKS = (Restoration("denoise"), Restoration("deblur"))


def network(tasks: Sequence[Task] = TASKS, *, trained: bool = True, **options: Any) -> TATNetwork:
    torch.manual_seed(0)
    built = models.build("tat_network", (3, 8, 8), tasks, width=4, blocks=[1, 2], **options)
    assert isinstance(built, TATNetwork)
    if trained:  # gains start at zero
        for name, parameter in built.named_parameters():
            if name.endswith("gain"):
                torch.nn.init.normal_(parameter)
    return built.double()


@pytest.fixture(scope="module")
def pictures() -> Tensor:
    return torch.rand(3, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_a_sample_is_convolved_with_the_shared_kernel_and_its_own() -> None:
    layer = AdaptiveDepthwise(4, adaptive=True).double()
    assert layer.gain is not None
    torch.nn.init.normal_(layer.gain)
    features = torch.rand(2, 4, 5, 6, dtype=torch.float64)
    generated = torch.randn(2, 4, 1, 3, 3, dtype=torch.float64)
    found = layer(features, generated)
    for sample in range(2):
        kernel = layer.kernel + layer.gain * generated[sample]
        expected = torch.nn.functional.conv2d(features[sample], kernel, padding=1, groups=4)
        torch.testing.assert_close(found[sample], expected)


def test_without_gains_it_is_the_network_without_a_generator(pictures: Tensor) -> None:
    adaptive, plain = network(trained=False), network(trained=False, adaptive=False)
    shared = dict(plain.encoder.named_parameters())
    assert {name for name, _ in adaptive.encoder.named_parameters()} > shared.keys()
    torch.testing.assert_close(adaptive.encoder(pictures), plain.encoder(pictures))
    assert not torch.allclose(network().encoder(pictures), plain.encoder(pictures))


def test_gains_learn_first_and_then_the_generator(pictures: Tensor) -> None:
    model = network(trained=False)
    generator = list(model.encoder.generator.parameters())  # type: ignore[union-attr]
    for moved in (False, True):
        model.zero_grad()
        loss = torch.stack([output.square().mean() for output in model(pictures).values()]).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        assert any(bool(parameter.grad.any()) for parameter in generator if parameter.grad is not None) is moved
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith("gain"):
                    assert parameter.grad is not None
                    assert parameter.grad.any()
                    parameter.sub_(0.1 * parameter.grad)


def test_the_generator_sends_no_gradient_into_the_encoder() -> None:
    features = torch.rand(2, 8, 4, 4, dtype=torch.float64, requires_grad=True)
    kernels = network().encoder.generator(features)  # type: ignore[operator]
    assert [kernel.shape for kernel in kernels] == [(2, size, 1, 3, 3) for size in (24, 32, 12, 16)]
    for kernel in kernels:
        assert kernel.requires_grad
        assert torch.autograd.grad(kernel.sum(), features, allow_unused=True)[0] is None


def test_every_picture_is_restored_by_itself(pictures: Tensor) -> None:
    model = network()
    together = model({"denoise": pictures, "deblur": pictures[:1]})
    torch.testing.assert_close(together["denoise"][2:], model(pictures[2:])["denoise"])
    torch.testing.assert_close(together["deblur"], model(pictures[:1])["deblur"])
    assert model({"deblur": pictures}).keys() == {"deblur"}
    # A network of one task passes over the pictures of others.
    assert network(TASKS[:1])({"denoise": pictures, "deblur": pictures}).keys() == {"denoise"}


def test_heads_add_to_the_picture(pictures: Tensor) -> None:
    model = network()
    for head in model.decoders.values():
        for parameter in head.parameters():
            torch.nn.init.zeros_(parameter)
    for output in model(pictures).values():
        assert torch.equal(output, pictures)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 3}, "an even width from 2 .* not width 3"),
        ({"blocks": []}, "at least one block in each of one or more levels"),
        ({"blocks": [1, 1, 1, 1, 1]}, r"multiples of 16, not inputs of shape \(3, 8, 8\)"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        models.build("tat_network", (3, 8, 8), TASKS, **options)


def test_a_task_that_restores_no_picture_is_named() -> None:
    with pytest.raises(UsageError, match="gives back pictures of 3 channels, but task 'depth' has 1"):
        models.build("tat_network", (3, 8, 8), [Depth("depth")])
