"""SegNet, its attention network, ResNets and DeepLab: parameter counts as published, shapes, what is shared."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from mtobal import models
from mtobal.errors import UsageError
from mtobal.models.decoders import ASPP, at_size_of
from mtobal.models.resnet import ResNet
from mtobal.models.segnet import SegNet
from mtobal.tasks import Classification, Depth, Normals, Segmentation, Task

NYU: tuple[Task, ...] = (Segmentation("segmentation", num_classes=13), Depth("depth"), Normals("normals"))
CITYSCAPES: tuple[Task, ...] = (Segmentation("segmentation", num_classes=7), Depth("depth"))
SMALL = {
    "segnet": {"filters": [4, 8, 8, 16, 16]},
    "mtan_segnet": {"filters": [4, 8, 8, 16, 16]},
    "deeplab": {"depth": 18, "width": 4, "decoder_channels": 8},
}
every_model = pytest.mark.parametrize("name", SMALL)


def size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("name", "tasks", "options", "expected"),
    [
        ("segnet", NYU, {}, 25_055_185),
        ("segnet", NYU, {"filters": [64, 128, 256, 512, 1024]}, 43_934_161),
        ("segnet", NYU[:1], {}, 24_981_069),
        ("segnet", CITYSCAPES, {}, 25_017_672),
        ("mtan_segnet", NYU, {}, 44_229_073),
        ("mtan_segnet", CITYSCAPES, {}, 41_206_984),
        ("deeplab", NYU, {}, 71_888_721),
    ],
)
def test_networks_have_the_published_number_of_parameters(
    name: str, tasks: tuple[Task, ...], options: dict[str, object], expected: int
) -> None:
    with torch.device("meta"):
        assert size(models.build(name, (3, 288, 384), tasks, **options)) == expected


@pytest.mark.parametrize(
    ("depth", "expected"), [(18, 11_176_512), (34, 21_284_672), (50, 23_508_032), (101, 42_500_160)]
)
@pytest.mark.parametrize("dilated", [False, True])
def test_trunks_have_the_published_number_of_parameters(depth: int, expected: int, dilated: bool) -> None:
    with torch.device("meta"):
        assert size(ResNet(depth=depth, dilated=dilated)) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("in_channels", "out_channels", "expected"),
    [(2048, 13, 16_128_781), (2048, 1, 16_125_697), (2048, 40, 16_135_720), (512, 3, 4_722_947)],
)
def test_pyramids_have_the_published_number_of_parameters(
    in_channels: int, out_channels: int, expected: int
) -> None:
    with torch.device("meta"):
        assert size(ASPP(in_channels, out_channels)) == expected


def test_parts_of_the_attention_network_have_the_published_number_of_parameters() -> None:
    with torch.device("meta"):
        model = models.build("mtan_segnet", (3, 288, 384), NYU)
    masks = model.attention["depth"]
    assert size(masks.encoder) == 1_835_648
    assert size(masks.decoder) == 1_148_928
    assert size(model.encoder_carry) == 6_272_640
    assert size(model.decoder_carry) == 3_947_520
    assert [size(model.heads[task.name]) for task in NYU] == [37_773, 36_993, 37_123]


@every_model
@pytest.mark.parametrize("shape", [(72, 96), (33, 47), (64, 32)])
def test_every_task_gets_a_map_of_the_input_s_size(name: str, shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    outputs = models.build(name, (3, *shape), NYU, **SMALL[name])(torch.rand(2, 3, *shape))
    assert {task: tuple(output.shape) for task, output in outputs.items()} == {
        "segmentation": (2, 13, *shape),
        "depth": (2, 1, *shape),
        "normals": (2, 3, *shape),
    }
    assert all(output.isfinite().all() for output in outputs.values())


@every_model
def test_every_parameter_is_reached_and_the_tasks_own_are_heads_and_masks(name: str) -> None:
    torch.manual_seed(0)
    model = models.build(name, (3, 64, 64), NYU, **SMALL[name])
    outputs = model(torch.rand(2, 3, 64, 64))
    reached: dict[str, set[str]] = {parameter: set() for parameter, _ in model.named_parameters()}
    for task, output in outputs.items():
        model.zero_grad()
        output.square().sum().backward(retain_graph=True)
        for parameter, value in model.named_parameters():
            if value.grad is not None:
                reached[parameter].add(task)
    names = {task.name for task in NYU}
    for parameter, tasks in reached.items():
        own = [task for task in names if f".{task}." in f".{parameter}."]
        assert tasks == (set(own) if own else names), parameter


@every_model
def test_under_one_seed_the_encoder_starts_alike_for_any_tasks(name: str) -> None:
    first = []
    for tasks in (NYU, NYU[1:], NYU[2:]):
        torch.manual_seed(0)
        model = models.build(name, (3, 64, 64), tasks, **SMALL[name])
        trunk = model.trunk if name == "mtan_segnet" else model.encoder
        first.append(torch.cat([value.flatten() for value in trunk.parameters()]))
    assert torch.equal(first[0], first[1])
    assert torch.equal(first[0], first[2])


@every_model
def test_a_network_learns_its_batch(name: str) -> None:
    torch.manual_seed(0)
    model = models.build(name, (3, 32, 32), NYU[1:2], **SMALL[name])
    inputs = torch.rand(4, 3, 32, 32)
    depth = 1 + inputs.mean(dim=1, keepdim=True)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = NYU[1].loss(model(inputs)["depth"], depth)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_dilation_keeps_an_eighth_and_weights_fit_both(tmp_path: Path) -> None:
    torch.manual_seed(0)
    plain, dilated = (ResNet(depth=50, width=4, dilated=flag).eval() for flag in (False, True))
    assert dilated(torch.rand(1, 3, 64, 96)).shape == (1, 128, 8, 12)
    assert plain(torch.rand(1, 3, 64, 96)).shape == (1, 128, 2, 3)
    path = tmp_path / "resnet.pth"
    torch.save({**plain.state_dict(), "fc.weight": torch.zeros(1000, 128), "fc.bias": torch.zeros(1000)}, path)
    dilated.load_weights(path)
    assert all(torch.equal(value, dilated.state_dict()[name]) for name, value in plain.state_dict().items())
    assert "layer3.0.downsample.1.running_mean" in plain.state_dict()


def test_dilation_computes_what_the_strided_network_leaves_out() -> None:
    # Up to the borders, every second pixel of the dilated maps is the strided network's: the same filters over the
    # same pixels.
    torch.manual_seed(0)
    plain, dilated = (ResNet(depth=18, width=4, dilated=flag).eval() for flag in (False, True))
    dilated.load_state_dict(plain.state_dict())
    features = torch.rand(1, 8, 16, 16)
    assert torch.allclose(dilated.layer3(features)[:, :, ::2, ::2], plain.layer3(features), atol=1e-5)


def test_other_weights_are_refused(tmp_path: Path) -> None:
    encoder = ResNet(depth=18, width=4)
    path = tmp_path / "weights.pth"
    with pytest.raises(UsageError, match=r"weights\.pth: expected the weights of a ResNet"):
        encoder.load_weights(path)
    path.write_bytes(b"no weights")
    with pytest.raises(UsageError, match=r"weights\.pth: expected a file of tensors, found another"):
        encoder.load_weights(path)
    torch.save({1: torch.zeros(1)}, path)
    with pytest.raises(UsageError, match=r"weights\.pth: expected the weights of a ResNet by their names"):
        encoder.load_weights(path)
    torch.save(ResNet(depth=18, width=8).state_dict(), path)
    with pytest.raises(UsageError, match=r"weights\.pth: these are the weights of another network: .*conv1"):
        encoder.load_weights(path)


@pytest.mark.parametrize("legacy", [False, True])
def test_weights_that_are_cut_off_are_told(legacy: bool, tmp_path: Path) -> None:
    encoder = ResNet(depth=18, width=1)
    path = tmp_path / "weights.pth"
    torch.save(encoder.state_dict(), path, _use_new_zipfile_serialization=not legacy)
    whole = path.read_bytes()
    for length in range(0, len(whole) - 1, len(whole) // 100):
        path.write_bytes(whole[:length])
        with pytest.raises(UsageError, match=r"weights\.pth: ") as caught:
            encoder.load_weights(path)
        assert "\n" not in str(caught.value)


def test_a_small_stem_keeps_small_images() -> None:
    tasks = [Classification(f"task {i}", num_classes=5) for i in range(20)]
    with torch.device("meta"):
        model = models.build("resnet", (3, 32, 32), tasks, small_stem=True)
    trunk = 11_176_512 - 64 * 3 * (49 - 9)
    assert size(model) == trunk + 20 * (512 * 5 + 5)
    assert ResNet(width=4, small_stem=True)(torch.rand(2, 3, 32, 32)).shape == (2, 32, 4, 4)


def test_convolutions_start_from_the_published_distributions() -> None:
    torch.manual_seed(0)
    resnet, segnet = ResNet(depth=18, width=32), SegNet(3, (32, 32))
    for convolution, variance in (
        (resnet.get_submodule("layer3.0.conv1"), 2 / (9 * 128)),  # twice one over what a pixel is read by
        (segnet.get_submodule("encoder.0.0"), 2 / (9 * (3 + 32))),
        (segnet.get_submodule("decoder_refine.0.0.0"), 2 / (9 * (32 + 32))),
    ):
        assert isinstance(convolution, nn.Conv2d)
        assert convolution.weight.var().item() == pytest.approx(variance, rel=0.15)
        assert convolution.bias is None or (convolution.bias == 0).all()


def test_a_pyramid_looks_as_far_as_published() -> None:
    pyramid = ASPP(1, 1, channels=1).eval()
    point = torch.zeros(1, 1, 81, 81)
    point[..., 40, 40] = 1
    for scale, distance in zip(pyramid.scales, (0, 12, 24, 36), strict=True):
        seen = scale.get_submodule("0")(point)[0, 0].nonzero()
        assert {*seen.flatten().tolist()} == {40 - distance, 40, 40 + distance}


def test_maps_are_brought_to_size_from_corner_to_corner() -> None:
    ramp = torch.linspace(0, 1, 5, dtype=torch.float64).expand(1, 1, 3, 5)
    (found,) = at_size_of(torch.zeros(1, 3, 9, 21), {"depth": ramp}).values()
    assert torch.allclose(found[0, 0], torch.linspace(0, 1, 21, dtype=torch.float64).expand(9, 21))


def test_one_image_cannot_train_a_pyramid() -> None:
    model = models.build("deeplab", (3, 32, 32), NYU, **SMALL["deeplab"])
    with pytest.raises(UsageError, match="batches of two images or more"):
        model(torch.rand(1, 3, 32, 32))
    assert model.eval()(torch.rand(1, 3, 32, 32))["depth"].shape == (1, 1, 32, 32)


@pytest.mark.parametrize("name", ["segnet", "mtan_segnet"])
def test_an_image_too_small_for_the_levels_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=r"5 levels reads images .* at least 32 pixels a side, .*\(3, 31, 40\)"):
        models.build(name, (3, 31, 40), NYU)
    with pytest.raises(UsageError, match="one number a level"):
        models.build(name, (3, 64, 64), NYU, filters=[])
