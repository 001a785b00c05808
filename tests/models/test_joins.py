"""Cross-stitch, NDDR, MTAN on a ResNet and learned branches: published sizes, and what the tasks exchange."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from mtobal import models
from mtobal.errors import UsageError
from mtobal.models.decoders import PixelShuffle
from mtobal.models.ltb import LearningToBranch
from mtobal.models.nddr import Fusion
from mtobal.tasks import Classification, Depth, Normals, Segmentation, Task

NYU: tuple[Task, ...] = (Segmentation("segmentation", num_classes=13), Depth("depth"), Normals("normals"))
LABELS: tuple[Task, ...] = tuple(Classification(name, num_classes=2) for name in ("left", "middle", "right"))
TINY = {"depth": 18, "width": 2}
JOINS = ("cross_stitch", "nddr", "ltb", "mtan_resnet")
every_join = pytest.mark.parametrize("name", JOINS)

TRUNK, DECODERS = 23_508_032, 48_380_689  # of a ResNet-50, and of the three tasks


def size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def tiny(name: str, **options: object) -> models.base.MultiTaskModel:
    torch.manual_seed(0)
    return models.build(name, (3, 32, 32), LABELS, **TINY, decoder="linear", **options)  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cross_stitch", 118_904_821),
        ("mtan_resnet", 92_347_921),
        # Published are 118,904,839: there, scores of two levels more are kept, which nothing reads.
        ("ltb", 118_904_839 - 2 * 3 * 3),
        # Networks, decoders, and for each task a 1x1 convolution and a batch norm on 64, 256, 512, 1024 and 2048.
        ("nddr", 3 * TRUNK + DECODERS + 3 * sum(3 * c * c + 2 * c for c in (64, 256, 512, 1024, 2048))),
    ],
)
def test_joins_have_the_published_number_of_parameters(name: str, expected: int) -> None:
    with torch.device("meta"):
        assert size(models.build(name, (3, 288, 384), NYU)) == expected


def test_parts_of_the_attention_network_have_the_published_number_of_parameters() -> None:
    with torch.device("meta"):
        model = models.build("mtan_resnet", (3, 288, 384), NYU)
    assert size(model.trunk) == TRUNK
    assert size(model.attention["depth"]) == 4_175_936
    assert size(model.carry) == 7_931_392
    assert size(model.decoders) == DECODERS


@pytest.mark.parametrize("name", [*JOINS, "deeplab", "slimmable"])
@pytest.mark.parametrize("decoder", ["aspp", "pixel_shuffle"])
def test_maps_are_of_the_input_s_size(name: str, decoder: str) -> None:
    torch.manual_seed(0)
    model = models.build(name, (3, 33, 47), NYU, **TINY, decoder=decoder, decoder_channels=4)
    outputs = model(torch.rand(2, 3, 33, 47))
    assert {task: tuple(output.shape) for task, output in outputs.items()} == {
        "segmentation": (2, 13, 33, 47),
        "depth": (2, 1, 33, 47),
        "normals": (2, 3, 33, 47),
    }


@every_join
@pytest.mark.parametrize("height", [32, 37, 65])
def test_labels_come_from_images_of_any_size(name: str, height: int) -> None:
    outputs = tiny(name)(torch.rand(2, 3, height, 32))
    assert {task: tuple(output.shape) for task, output in outputs.items()} == dict.fromkeys(
        ("left", "middle", "right"), (2, 2)
    )


@pytest.mark.parametrize("name", ["cross_stitch", "nddr"])
def test_an_exchange_that_takes_the_own_features_alone_leaves_separate_networks(name: str) -> None:
    model = tiny(name).eval()
    with torch.no_grad():
        if name == "cross_stitch":
            for unit in model.units:
                unit.weight.copy_(torch.eye(3))
        else:
            for i, task in enumerate(model.tasks):
                for fusion in model.fusions[task]:
                    channels = fusion[0].out_channels
                    own = torch.zeros(channels, 3 * channels)
                    own[:, i * channels : (i + 1) * channels] = torch.eye(channels)
                    fusion[0].weight.copy_(own[:, :, None, None])
                    fusion[1].eps = 0.0
    images = torch.rand(2, 3, 32, 32)
    outputs = model(images)
    for task in model.tasks:
        alone = model.decoders[task](model.trunks[task](images))
        torch.testing.assert_close(outputs[task], alone)


@pytest.mark.parametrize("tasks", [1, 2, 5])
def test_an_exchange_starts_near_the_own_features(tasks: int) -> None:
    first = models.parallel.own_and_others(tasks)
    torch.testing.assert_close(first.sum(1), torch.ones(tasks))
    torch.testing.assert_close(first.diag(), torch.full((tasks,), 0.9 if tasks > 1 else 1.0))


def test_a_fusion_keeps_every_channel_in_its_place_at_first() -> None:
    shares = models.parallel.own_and_others(3)[1]
    features = torch.rand(3, 2, 4, 5, 6)  # of three tasks, in four channels
    reduced = Fusion(4, shares).get_submodule("0")(torch.cat([*features], dim=1))
    torch.testing.assert_close(reduced, torch.einsum("t,tnchw->nchw", shares, features))


def branching() -> LearningToBranch:
    model = tiny("ltb")
    assert isinstance(model, LearningToBranch)
    return model


def test_training_sums_at_first_and_then_draws_ever_harder() -> None:
    model = branching()
    model.start_epoch(0, 100)
    features = [torch.full((1, 1), value) for value in (1.0, 10.0, 100.0)]
    assert [round(mixture.item()) for mixture in model.exchange(1, features)] == [111] * 3
    assert model.exchange(4, features) is features
    model.start_epoch(1, 100)
    assert float(model.temperature) == pytest.approx(5 / math.sqrt(2))
    drawn = {round(mixture.item()) for _ in range(20) for mixture in model.exchange(1, features)}
    assert drawn == {1, 10, 100}
    model.start_epoch(99, 100)
    assert float(model.temperature) == pytest.approx(0.5)
    with torch.no_grad():
        model.scores.copy_(100 * torch.eye(3).roll(1, 0))
    assert [round(mixture.item()) for mixture in model.exchange(1, features)] == [100, 1, 10]
    with pytest.raises(UsageError, match="epoch should be from 0 to 9, not 10"):
        model.start_epoch(10, 10)


def test_draws_teach_the_scores() -> None:
    model = branching()
    outputs = model(torch.rand(2, 3, 32, 32))
    outputs["left"].square().sum().backward()
    gradient = model.scores.grad
    assert gradient is not None
    live = gradient.abs().sum(dim=-1) > 0
    assert live[3].tolist() == [True, False, False]
    assert live.sum(dim=-1).tolist() == [1] * 4  # each stage on the way down has one parent


def test_evaluation_walks_the_tree_of_the_best_parents() -> None:
    model = branching().eval()
    # All go on from the stem and the first two stages of the left, and the two others together once more.
    tree = torch.tensor([[0, 0, 0], [0, 0, 0], [0, 1, 1], [0, 1, 1]])
    with torch.no_grad():
        model.scores.copy_(nn.functional.one_hot(tree, 3))
    assert model.parents()[3] == {"left": "left", "middle": "middle", "right": "middle"}
    runs: list[str] = []
    for name, module in model.named_modules():
        if name.count(".") == 2 and ".layer" in name:
            module.register_forward_hook(lambda *_, name=name: runs.append(name))
    images = torch.rand(2, 3, 32, 32)
    outputs = model(images)
    # The middle network's second stage reads the left one's first, and is a branch of its own from there on.
    assert sorted(runs) == [
        "trunks.left.layer1",
        "trunks.left.layer2",
        "trunks.left.layer3",
        "trunks.left.layer4",
        "trunks.middle.layer2",
        "trunks.middle.layer3",
        "trunks.middle.layer4",
        "trunks.right.layer4",
    ]
    left, middle, right = model.trunks.values()
    first = left.layer1(left.stem(images))
    branch = middle.layer3(middle.layer2(first))
    torch.testing.assert_close(
        outputs["left"], model.decoders["left"](left.layer4(left.layer3(left.layer2(first))))
    )
    torch.testing.assert_close(outputs["middle"], model.decoders["middle"](middle.layer4(branch)))
    torch.testing.assert_close(outputs["right"], model.decoders["right"](right.layer4(branch)))


def test_a_pixel_of_the_features_gives_a_square_of_the_output() -> None:
    torch.manual_seed(0)
    decoder = PixelShuffle(4, 3, channels=8, scale=4).eval()
    features = torch.rand(1, 4, 5, 6)
    plain = decoder[1](decoder[0](features))
    assert plain.shape == (1, 48, 5, 6)
    output = decoder(features)
    assert output.shape == (1, 3, 20, 24)
    assert torch.equal(output[0, 2, 7, 9], plain[0, 2 * 16 + 3 * 4 + 1, 1, 2])
