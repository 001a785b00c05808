"""The vision transformer, and encoders of other libraries."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from mtobal import models
from mtobal.errors import UsageError
from mtobal.models.vit import ViT
from mtobal.tasks import Classification

TASKS = (Classification("left", num_classes=2), Classification("right", num_classes=3))
TINY = {"patch": 8, "width": 8, "layers": 2, "heads": 2}


@pytest.mark.parametrize(
    ("width", "heads", "expected"), [(768, 12, 85_798_656), (384, 6, 21_665_664), (192, 3, 5_524_416)]
)
def test_published_transformers_have_the_published_number_of_parameters(
    width: int, heads: int, expected: int
) -> None:
    with torch.device("meta"):
        encoder = ViT((3, 224, 224), patch=16, width=width, layers=12, heads=heads)
    assert sum(parameter.numel() for parameter in encoder.parameters()) == expected


def test_the_representation_is_read_off_the_class_token() -> None:
    encoder = ViT((3, 16, 24), **TINY)
    encoder.blocks = nn.Sequential()  # through which no token learns of another
    expected = encoder.norm(encoder.class_token[0] + encoder.positions[0, :1])
    torch.testing.assert_close(encoder(torch.rand(2, 3, 16, 24)), expected.expand(2, -1))


def test_a_transformer_reads_every_patch_and_knows_where_it_was() -> None:
    torch.manual_seed(0)
    model = models.build("vit", (3, 16, 24), TASKS, **TINY).eval()
    images = torch.rand(2, 3, 16, 24)
    outputs = model(images)
    assert {task: tuple(output.shape) for task, output in outputs.items()} == {"left": (2, 2), "right": (2, 3)}
    for row, column in ((0, 0), (8, 16), (15, 23)):
        changed = images.clone()
        changed[:, :, row, column] += 1
        assert (model(changed)["left"] - outputs["left"]).abs().amin() > 1e-6
    swapped = images.clone()
    swapped[:, :, :, :8], swapped[:, :, :, 16:] = images[:, :, :, 16:], images[:, :, :, :8]
    assert (model(swapped)["left"] - outputs["left"]).abs().amax() > 1e-6


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((3, 16, 20), TINY, r"whole patches of 8 pixels, not inputs of shape \(3, 16, 20\)"),
        ((16,), TINY, r"not inputs of shape \(16,\)"),
        ((3, 16, 16), {**TINY, "heads": 3}, "a multiple of heads, not 8 with 3 heads"),
    ],
)
def test_what_does_not_fit_is_refused(shape: tuple[int, ...], options: dict[str, int], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        models.build("vit", shape, TASKS, **options)


class Classifier(nn.Module):
    """As torchvision builds them."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.classifier = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Dropout(0.2), nn.Linear(6, 1000))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(inputs))


def test_an_encoder_of_timm_is_asked_for_without_its_classifier(timm: list[dict[str, object]]) -> None:
    model = models.build("pretrained", (1, 8, 8), TASKS, encoder="tiny")
    assert timm == [{"name": "tiny", "pretrained": True, "num_classes": 0, "in_chans": 1}]
    assert model.training
    assert model.decoders["right"].weight.shape == (3, 6)
    assert model(torch.rand(2, 1, 8, 8))["right"].shape == (2, 3)
    with pytest.raises(UsageError, match="timm has no model 'tinny'"):
        models.build("pretrained", (1, 8, 8), TASKS, encoder="tinny")


def test_an_encoder_of_torchvision_loses_its_last_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def get_model(name: str, *, weights: str | None) -> nn.Module:
        asked.append((name, weights))
        return nn.Conv2d(3, 4, 1) if name == "conv" else Classifier()

    offers = SimpleNamespace(list_models=lambda module: ["tiny", "conv"], get_model=get_model)
    monkeypatch.setitem(sys.modules, "torchvision", SimpleNamespace(models=offers))
    options = {"library": "torchvision", "start": "random"}
    model = models.build("pretrained", (3, 8, 8), TASKS, encoder="tiny", **options)
    assert asked == [("tiny", None)]
    assert model.decoders["left"].weight.shape == (2, 6)
    assert model(torch.rand(2, 3, 8, 8))["left"].shape == (2, 2)
    models.build("pretrained", (3, 8, 8), TASKS, encoder="tiny", library="torchvision")
    assert asked[1] == ("tiny", "DEFAULT")
    for name, shape, message in (
        ("conv", (3, 8, 8), "conv of torchvision does not end in a linear layer"),
        ("tiny", (1, 8, 8), "images of 3 channels, not of 1"),
        ("tinny", (3, 8, 8), "torchvision has no image classifier 'tinny'"),
    ):
        with pytest.raises(UsageError, match=message):
            models.build("pretrained", shape, TASKS, encoder=name, **options)


@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_a_library_that_is_not_here_says_how_to_get_it(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(UsageError, match=f"need it installed .*: pip install {library}"):
        models.build("pretrained", (3, 8, 8), TASKS, encoder="tiny", library=library)
