"""Files and images: what is wrong is told in one line, in every way in which a file can be wrong."""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_files import png
from mtobal.data import checks, load, prepare
from mtobal.data.files import open_file, read_array, require_folder
from mtobal.data.images import read_image
from mtobal.data.inspection import find_problems
from mtobal.errors import UsageError

ARRAY = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
PICTURE = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


@pytest.mark.parametrize("array", [ARRAY, ARRAY.astype(">f8"), np.asfortranarray(ARRAY), ARRAY.astype(np.uint8)])
def test_arrays_are_read_as_they_are(array: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "array.npy", array)
    for shape in ((2, 3, 4), (None, 3, None)):
        found = read_array(tmp_path / "array.npy", shape)
        assert found.dtype == array.dtype
        assert np.array_equal(found, array)


def test_every_cut_of_an_array_is_told(tmp_path: Path) -> None:
    path = tmp_path / "array.npy"
    np.save(path, ARRAY)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(UsageError, match=r"array\.npy: "):
            read_array(path, (2, 3, 4))


def test_damaged_headers_are_read_or_told(tmp_path: Path) -> None:
    path = tmp_path / "array.npy"
    np.save(path, ARRAY)
    whole = path.read_bytes()
    rng = random.Random(0)
    told = []
    for _ in range(400):
        damaged = bytearray(whole)
        damaged[rng.randrange(128)] = rng.randrange(256)
        path.write_bytes(damaged)
        try:
            read_array(path, (2, 3, 4))
        except UsageError as error:
            told.append(str(error))
    assert len(told) > 150
    assert not any("\n" in message for message in told)


@pytest.mark.parametrize("shape", [(-1, -1, 4), (6, -1, 4), (True, True, 4), (0, 3, 4), (2**32, 2**32, 4)])
def test_a_header_that_names_impossible_lengths_is_told(shape: tuple[int, ...], tmp_path: Path) -> None:
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    path = tmp_path / "array.npy"
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + ARRAY.tobytes())
    with pytest.raises(UsageError, match=r"array\.npy: (expected shape \(any, any, 4\)|is cut off)"):
        read_array(path, (None, None, 4))


def test_what_is_no_file_is_told_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.npy")
    (tmp_path / "folder.npy").mkdir()
    for name, found in (("pipe", "something else"), ("folder", "something else"), ("nowhere", "nothing")):
        for read in (lambda path: read_array(path, (None,)), read_image):
            with pytest.raises(UsageError, match=rf"{name}\.npy: expected a file, found {found} there"):
                read(tmp_path / f"{name}.npy")


def test_a_disk_that_refuses_is_told() -> None:
    # A file whose first page cannot be read by anybody.
    refused = pytest.raises(UsageError, match="/proc/self/mem: cannot be read: Input/output error")
    with refused, open_file(Path("/proc/self/mem")) as file:
        file.read(1)


def test_a_path_that_the_disk_refuses_is_told(tmp_path: Path) -> None:
    path = tmp_path / ("a" * 300)
    for use in (
        lambda: read_array(path, (None,)),
        lambda: require_folder(path, "pictures"),
        lambda: load("multi_mnist", path=str(path)),
        lambda: checks("multi_mnist", path),
        lambda: prepare("qm9", path, tmp_path, lambda items, description, total: items),
    ):
        with pytest.raises(UsageError, match=r"a{300}: cannot be read: File name too long\."):
            use()
    assert list(find_problems([(path, path.stat)])) == [f"{path}: cannot be read: File name too long."]


@pytest.mark.parametrize("extension", ["png", "jpg"])
def test_images_are_read_in_colour_and_in_the_size_asked_for(extension: str, tmp_path: Path) -> None:
    path = tmp_path / f"image.{extension}"
    Image.fromarray(PICTURE).save(path, quality=100, subsampling=0)
    assert np.abs(read_image(path).astype(int) - PICTURE).max() <= (0 if extension == "png" else 8)
    assert read_image(path, mode="L").shape == (20, 30)
    small = read_image(path, size=(10, 15))
    assert small.shape == (10, 15, 3)
    assert abs(float(small.mean()) - float(PICTURE.mean())) < 1


def test_a_grey_image_comes_in_colour(tmp_path: Path) -> None:
    (tmp_path / "grey.png").write_bytes(png(PICTURE[:, :, 0]))
    assert np.array_equal(read_image(tmp_path / "grey.png")[:, :, 2], PICTURE[:, :, 0])


@pytest.mark.parametrize("extension", ["png", "jpg"])
def test_every_cut_of_an_image_is_told(extension: str, tmp_path: Path) -> None:
    path = tmp_path / f"image.{extension}"
    Image.fromarray(PICTURE).save(path)
    whole = path.read_bytes()
    # Behind it are checksums and the mark of the end, without which the pixels are whole.
    end = len(whole) - (24 if extension == "png" else 2)
    for length in [*range(0, end, 17), end - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(UsageError, match="expected an image, found something else") as caught:
            read_image(path)
        assert str(caught.value).startswith(f"{path}: ")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("extension", ["png", "jpg"])
def test_damaged_images_are_read_or_told(extension: str, tmp_path: Path) -> None:
    path = tmp_path / f"image.{extension}"
    Image.fromarray(PICTURE).save(path)
    whole = path.read_bytes()
    rng = random.Random(0)
    told = []
    for _ in range(200):
        damaged = bytearray(whole)
        for _ in range(3):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        path.write_bytes(damaged)
        try:
            read_image(path)
        except UsageError as error:
            told.append(str(error))
    assert len(told) > 10
    assert not any("\n" in message for message in told)


def test_an_image_that_would_fill_the_memory_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    Image.new("1", (9000, 9000)).save(path)
    assert path.stat().st_size < 200_000
    with pytest.raises(UsageError, match=r"bomb\.png: .* 9000 by 9000 pixels are more than any known image has"):
        read_image(path)


def test_without_pillow_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(UsageError, match=r"image files need Pillow, .*: pip install \"mtobal\[images\]\""):
        read_image(tmp_path / "image.png")
