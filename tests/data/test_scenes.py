"""Dense maps: augmentation keeps them consistent, and a broken folder is told file by file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from data_files import write_scenes
from mtobal.data.inspection import find_problems
from mtobal.data.scenes import SceneFolder, resize_image, resize_nearest, zoom_and_flip
from mtobal.errors import UsageError

SIZE = (48, 60)


def batch(number: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Return images whose colours hold the coordinates of each pixel, and maps that repeat them."""
    rows, columns = torch.meshgrid(torch.arange(SIZE[0]), torch.arange(SIZE[1]), indexing="ij")
    image = torch.stack([rows / 100, columns / 100, torch.zeros(SIZE)]).repeat(number, 1, 1, 1)
    normals = torch.tensor([0.6, 0.0, 0.8])[:, None, None].repeat(number, 1, *SIZE)
    normals[:, :, :, :10] = 0
    labels = (rows * SIZE[1] + columns).repeat(number, 1, 1)
    depth = (1.0 + columns).repeat(number, 1, 1, 1)
    depth[..., :10] = 0
    return image, {"segmentation": labels, "depth": depth, "normals": normals}


def augmented(seed: int = 0, number: int = 64, **options: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    return zoom_and_flip(batch(number), torch.Generator().manual_seed(seed), **options)


def test_labels_and_depth_stay_at_the_pixels_of_the_image() -> None:
    images, targets = augmented()
    rows, columns = targets["segmentation"] // SIZE[1], targets["segmentation"] % SIZE[1]
    # The image is interpolated from corner to corner, labels are those of the nearest pixel.
    steps = images[:, 1].diff(dim=-1)
    assert torch.allclose(steps, steps[:, :, :1].expand_as(steps), atol=1e-6)
    assert (images[:, 0] * 100 - rows).abs().max() <= 1
    assert (images[:, 1] * 100 - columns).abs().max() <= 1
    known = targets["depth"][:, 0] > 0
    assert torch.equal(known, columns >= 10)
    factor = (1.0 + columns)[known] / targets["depth"][:, 0][known]
    assert {round(float(value), 3) for value in factor.unique()} == {1.0, 1.2, 1.5}


def test_a_zoom_divides_distances_and_multiplies_inverse_ones() -> None:
    metric, inverse = (augmented(depth_exponent=exponent)[1]["depth"] for exponent in (-1, 1))
    zoom = (inverse / metric)[inverse > 0].sqrt()
    assert zoom.max() == pytest.approx(1.5)
    assert torch.equal(metric == 0, inverse == 0)


def test_all_zooms_and_both_directions_occur_and_mirrored_normals_turn() -> None:
    images, targets = augmented(number=200)
    zooms = set()
    for image, normals in zip(images, targets["normals"], strict=True):
        mirrored = bool(image[1, 0, 0] > image[1, 0, -1])
        known = (normals != 0).any(dim=0)
        assert torch.allclose(normals[0][known], torch.tensor(-0.6 if mirrored else 0.6))
        assert torch.allclose(normals[:, known].norm(dim=0), torch.tensor(1.0))
        height = float(image[0, -1, 0] - image[0, 0, 0]) * 100
        zooms.add((round((SIZE[0] - 1) / height, 1), mirrored))
    assert {mirrored for _, mirrored in zooms} == {True, False}
    assert len(zooms) == 6


def test_pixels_without_a_normal_have_none_after_it() -> None:
    _, targets = augmented(number=1, seed=1)
    assert (targets["normals"] == 0).all(dim=1).any()


def test_augmentation_depends_on_the_generator_alone_and_leaves_its_input_alone() -> None:
    original = batch(4)
    first = zoom_and_flip(original, torch.Generator().manual_seed(3))
    torch.manual_seed(1)
    again = augmented(seed=3, number=4)
    assert torch.equal(first[0], again[0])
    assert torch.equal(original[0], batch(4)[0])
    assert not torch.equal(first[0], augmented(seed=4, number=4)[0])


def test_an_image_that_shrinks_keeps_its_mean_and_nearest_keeps_its_values() -> None:
    image = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    resized = resize_image(image, (288, 384))
    assert resized.dtype == np.float32
    assert resized.shape == (288, 384, 3)
    assert abs(resized.mean() - image.mean() / 255) < 1e-3
    assert 0 <= resized.min() <= resized.max() <= 1
    grid = np.arange(24).reshape(4, 6)
    assert resize_nearest(grid, (2, 3)).tolist() == [[7, 9, 11], [19, 21, 23]]
    assert resize_nearest(grid[..., None], (4, 6)).shape == (4, 6, 1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_scenes(tmp_path, {"train": 3}, (6, 8), "label", normals=True)
    return tmp_path / "train"


def opened(folder: Path) -> SceneFolder:
    return SceneFolder.open(folder, "label", 7, has_normals=True)


def problems(folder: Path) -> list[str]:
    scenes = SceneFolder(folder, "label", 7, has_normals=True, size=(6, 8))
    return [problem for problem in find_problems(scenes.checks(3)) if problem]


def test_maps_come_as_the_tasks_want_them(folder: Path) -> None:
    scenes = opened(folder)
    image, targets = scenes.read(1)
    assert scenes.numbers() == [0, 1, 2]
    assert image.dtype == targets["depth"].dtype == targets["normals"].dtype == torch.float32
    assert targets["segmentation"].dtype == torch.int64
    stored = {name: np.load(folder / name / "1.npy") for name in ("image", "label", "depth", "normal")}
    assert np.array_equal(image.permute(1, 2, 0), stored["image"].astype(np.float32))
    assert np.array_equal(targets["segmentation"], stored["label"])
    assert np.array_equal(targets["depth"][0], stored["depth"][..., 0])
    assert np.array_equal(targets["normals"].permute(1, 2, 0), stored["normal"].astype(np.float32))
    assert problems(folder) == []


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def save(values: object) -> object:
    return lambda path: np.save(path, values, allow_pickle=True)


def label(value: float) -> np.ndarray:
    values = np.zeros((6, 8))
    values[2, 3] = value
    return values


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("image", cut, "is cut off, 9 bytes are missing"),
        ("image", save(np.zeros((6, 9, 3))), r"expected shape \(6, 8, 3\), found \(6, 9, 3\)"),
        ("image", save(np.zeros((3, 6, 8))), r"found \(3, 6, 8\)"),
        ("image", save(np.array([print], dtype=object)), "expected an array of numbers, found object"),
        ("image", lambda path: path.write_bytes(b""), "expected a NumPy array"),
        ("image", lambda path: path.write_bytes(b"PK\x03\x04" * 50), "expected a NumPy array"),
        ("label", save(label(7)), "expected labels from -1 to 6, found 0 to 7"),
        ("label", save(label(np.nan)), "expected labels from -1 to 6, found nan to nan"),
        ("label", save(label(0.5)), "expected labels that are whole numbers, found others"),
        ("depth", save(np.zeros((6, 8))), r"expected shape \(6, 8, 1\), found \(6, 8\)"),
        ("normal", cut, "is cut off"),
    ],
)
def test_a_broken_file_is_named_when_it_is_read_and_when_it_is_checked(
    folder: Path, name: str, damage: object, message: str
) -> None:
    path = folder / name / "1.npy"
    damage(path)  # type: ignore[operator]
    scenes = opened(folder)
    scenes.read(0)
    with pytest.raises(UsageError, match=message) as caught:
        scenes.read(1)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    assert problems(folder) == [str(caught.value)]


def test_a_header_that_promises_more_than_memory_holds_is_refused(folder: Path) -> None:
    path = folder / "image" / "0.npy"
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000, 1000000, 3), }\n"
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    with pytest.raises(UsageError, match="is cut off, 24000000000000 bytes are missing"):
        opened(folder)


def test_values_that_make_no_sense_are_told_by_the_check(folder: Path) -> None:
    np.save(folder / "image" / "0.npy", np.full((6, 8, 3), 200))
    np.save(folder / "depth" / "1.npy", np.full((6, 8, 1), -1.0))
    np.save(folder / "depth" / "2.npy", np.zeros((6, 8, 1)))
    np.save(folder / "normal" / "2.npy", np.full((6, 8, 3), 0.9))
    found = problems(folder)
    assert len(found) == 4
    assert found[0] == f"{folder / 'image' / '0.npy'}: expected colours from 0 to 1, found 200 to 200."
    assert "depth/1.npy: expected depths from 0" in found[1]
    assert "depth/2.npy: expected depths above 0" in found[2]
    assert "normal/2.npy: expected normals of length 1, or 0 where unknown, found one of length 1.5" in found[3]


def test_missing_files_and_strangers_are_told(folder: Path) -> None:
    (folder / "depth" / "1.npy").unlink()
    (folder / "label" / "notes.txt").touch()
    (folder / "label" / "0 (1).npy").touch()
    with pytest.raises(UsageError, match=r"depth/1\.npy: is missing, while other maps of it are there"):
        opened(folder)
    found = problems(folder)
    assert len(found) == 2
    assert "label/0 (1).npy: expected files 0.npy, 1.npy, ... alone in this folder (2 in all)" in found[0]
    assert "depth/1.npy: is missing; expected 3 files" in found[1]


def test_a_missing_folder_is_told(folder: Path, tmp_path: Path) -> None:
    for path in (folder / "normal").iterdir():
        path.unlink()
    (folder / "normal").rmdir()
    with pytest.raises(UsageError, match="normal: expected a folder with files"):
        opened(folder)
    assert any("normal: expected a folder" in problem for problem in problems(folder))
    with pytest.raises(UsageError, match="expected a folder with the folders image, label, depth, normal"):
        opened(tmp_path / "nowhere")


def test_too_many_images_are_told(folder: Path) -> None:
    for number in (3, 10_000):  # the numbers between are nobody's loss
        for name in ("image", "label", "depth", "normal"):
            (folder / name / f"{number}.npy").write_bytes((folder / name / "2.npy").read_bytes())
    assert problems(folder)[0] == f"{folder / 'image'}: expected 3 samples, found 5."
