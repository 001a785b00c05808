"""NYUv2: class tables, the published files, their conversion, and what is said of broken ones."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import random
import shutil
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from scipy.io import savemat

from data_files import (
    NYU_TEST,
    NYU_TRAIN,
    full_disk,
    nyu_maps,
    nyu_normals,
    png,
    write_nyu,
    write_scenes,
    write_tar,
)
from mtobal.data import evaluation_loader, load, training_loader
from mtobal.data.inspection import find_problems
from mtobal.data.nyuv2 import check_nyuv2, nyuv2, prepare_nyuv2
from mtobal.data.nyuv2 import dataset as dataset_module
from mtobal.data.nyuv2 import original as original_module
from mtobal.data.nyuv2.classes import NAMES_13, NAMES_40, RAW_TO_13, RAW_TO_40
from mtobal.data.nyuv2.matlab import read_numbers
from mtobal.data.nyuv2.normals import normals_from_depth
from mtobal.errors import UsageError


def silent(items: Iterable[Any], description: str, total: int) -> Iterable[Any]:
    return items


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published")
    write_nyu(folder)
    return folder


@pytest.fixture(scope="session")
def with_normals(published: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("with-normals")
    shutil.copytree(published, folder, dirs_exist_ok=True)
    write_tar(folder / "normals_gt.tgz", nyu_normals())
    return folder


@pytest.fixture(scope="session")
def prepared(with_normals: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    told = prepare_nyuv2(with_normals, folder, silent)
    assert told == f"6 images converted and 0 kept, with normals from the published archive, in {folder}"
    return folder


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset_module, "COUNTS", {"train": len(NYU_TRAIN), "val": len(NYU_TEST)})


def test_class_tables_are_the_published_ones() -> None:
    # Of the table of Gupta et al., 894 bytes from 1 to 40.
    digest = hashlib.sha1((RAW_TO_40[1:] + 1).astype(np.uint8).tobytes()).hexdigest()
    assert digest == "2fde66b9ee3b6ef02b3537d98b95ebc919e1ad8d"
    assert RAW_TO_40[0] == RAW_TO_13[0] == -1
    assert sorted(set(RAW_TO_13[1:].tolist())) == list(range(13))
    assert len(NAMES_13) == 13
    assert len(NAMES_40) == 40
    # What has the same name among 40 and 13 is the same class.
    for name in {"bed", "chair", "floor", "sofa", "table", "wall", "window", "books", "ceiling", "picture"}:
        raw = NAMES_40.index(name) == RAW_TO_40
        assert set(RAW_TO_13[raw].tolist()) == {NAMES_13.index(name)}


def test_images_lie_upright_and_split_as_published(published: Path) -> None:
    data = nyuv2(path=str(published), validation_share=0)
    assert (len(data.train), len(data.test)) == (4, 2)
    assert data.validation is data.test
    assert data.input_shape == (3, 288, 384)
    maps = nyu_maps()
    for split, numbers in ((data.train, NYU_TRAIN), (data.test, NYU_TEST)):
        for row, number in enumerate(numbers):
            image, targets = split[row]
            assert image.shape == (3, 288, 384)
            # Red grows to the right; the other colours are noise.
            assert (image[0].diff(dim=1) >= 0).all()
            assert float(image[1].mean()) == pytest.approx(
                maps["images"][number - 1, ..., 1].mean() / 255, abs=1e-3
            )
            labels = targets["segmentation"]
            assert (labels[:28, :38] == -1).all()
            assert (labels[40:140, :190] == NAMES_13.index("wall")).all()
            assert (labels[-40:, :190] == NAMES_13.index("floor")).all()
            assert (labels[:, 200:] == RAW_TO_13[100 + number - 1]).all()
            assert float(targets["depth"][0, 10, 10]) == pytest.approx(3.0 + 0.1 * (number - 1))


def test_forty_classes(published: Path) -> None:
    data = load("nyuv2", path=str(published), classes=40, validation_share=0)
    assert data.tasks[0].out_features == 40
    _, targets = data.test[0]
    assert int(targets["segmentation"][60, 100]) == NAMES_40.index("wall")


def test_normals_from_depth_are_exact_on_planes() -> None:
    maps = nyu_maps()
    normals = normals_from_depth(maps["depths"][0])
    assert np.allclose(np.linalg.norm(normals, axis=2), 1, atol=1e-6)
    assert np.allclose(normals[20:240, 10:-10], [0, 0, 1], atol=1e-5)  # the wall looks at the camera
    assert np.allclose(normals[-50:-5, 10:-10], [0, 1, 0], atol=1e-5)  # the floor looks up


@pytest.mark.parametrize("size", [(480, 640), (288, 384)])
def test_normals_from_depth_of_a_slanted_plane(size: tuple[int, int]) -> None:
    normal = np.array([0.3, -0.4, 0.5])
    normal /= np.linalg.norm(normal)
    u = ((np.arange(size[1]) + 0.5) * 640 / size[1] - 0.5 - 325.5824) / 518.8579
    v = ((np.arange(size[0]) + 0.5) * 480 / size[0] - 0.5 - 253.7362)[:, None] / 519.4696
    # Points of the plane n . (x, y, z) = -2, with y up and z towards the camera.
    depth = 2 / -(normal[0] * u - normal[1] * v - normal[2])
    assert depth.min() > 0
    depth[100:120, 100:120] = 0
    found = normals_from_depth(depth.astype(np.float32))
    known = depth > 0
    assert np.allclose(found[known], normal, atol=1e-3)
    assert (found[~known] == 0).all()


def test_a_step_in_depth_does_not_bend_normals() -> None:
    depth = np.full((100, 100), 2.0)
    depth[:, 50:] = 3.0
    assert np.allclose(normals_from_depth(depth), [0, 0, 1], atol=1e-6)


def test_pixels_in_a_line_have_no_normal_and_three_in_a_corner_have_one() -> None:
    depth = np.zeros((60, 60))
    depth[10, 10] = 2.0
    depth[20, :] = 2.0
    depth[30:50, 30:50] = 2 * np.eye(20)
    assert (normals_from_depth(depth) == 0).all()
    depth[10, 11] = depth[11, 10] = 2.0
    assert np.allclose(normals_from_depth(depth)[10, 10], [0, 0, 1])


def test_the_converted_tree_holds_what_the_published_files_hold(
    prepared: Path, with_normals: Path, counts: None
) -> None:
    for classes in (13, 40):
        tree = nyuv2(path=str(prepared), classes=classes, augment=False, validation_share=0)
        original = nyuv2(path=str(with_normals), classes=classes, augment=False, validation_share=0)
        for one, other in ((tree.train, original.train), (tree.test, original.test)):
            assert len(one) == len(other)
            for row in range(len(one)):
                (image, maps), (image_, maps_) = one[row], other[row]
                assert torch.equal(image, image_)
                assert maps.keys() == maps_.keys() == {"segmentation", "depth", "normals"}
                for name in maps:
                    assert torch.equal(maps[name], maps_[name])
    assert [problem for problem in find_problems(check_nyuv2(prepared)) if problem] == []


def test_published_normals_are_decoded_and_masked(prepared: Path) -> None:
    for row, number in enumerate(NYU_TEST):
        normal = np.load(prepared / "val" / "normal" / f"{row}.npy")
        assert (normal[:60, :60] == 0).all()
        expected = np.array([127, 127 + number - 1, 250]) / 127.5 - 1
        assert np.allclose(normal[100:, 100:], expected / np.linalg.norm(expected), atol=1e-6)


def test_a_second_call_makes_only_what_is_missing(published: Path, tmp_path: Path) -> None:
    prepare_nyuv2(published, tmp_path, silent)
    victim, kept = tmp_path / "train" / "normal" / "1.npy", tmp_path / "train" / "normal" / "0.npy"
    content, before = victim.read_bytes(), kept.stat().st_mtime_ns
    victim.unlink()
    stages: list[tuple[str, int]] = []

    def track(items: Iterable[Any], description: str, total: int) -> Iterable[Any]:
        stages.append((description, total))
        return items

    told = prepare_nyuv2(published, tmp_path, track)
    assert told.startswith("1 images converted and 5 kept, with normals from depth")
    assert stages == [("images", 6)]
    assert victim.read_bytes() == content
    assert kept.stat().st_mtime_ns == before


def test_a_call_that_was_stopped_leaves_no_half_file_under_a_good_name(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(np, "save", stop)
        with pytest.raises(KeyboardInterrupt):
            prepare_nyuv2(published, tmp_path, silent)
    assert list(tmp_path.rglob("*.npy")) == []
    assert prepare_nyuv2(published, tmp_path, silent).startswith("6 images converted and 0 kept")
    assert list(tmp_path.rglob("*.unfinished")) == []


def test_a_full_disk_is_told_and_leaves_nothing_that_looks_whole(published: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(published, source)
    with full_disk(), pytest.raises(UsageError, match=r"tree: cannot be written: \d+ requested and \d+ written\."):
        prepare_nyuv2(source, tmp_path / "tree", silent)
    assert list(tmp_path.rglob("*.npy")) == []
    write_tar(source / "normals_gt.tgz", nyu_normals())
    with full_disk(), pytest.raises(UsageError, match=r"normals_gt\.unfinished: cannot be written: File too"):
        prepare_nyuv2(source, tmp_path / "tree", silent)
    assert not (source / "normals_gt").exists()


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_tree_that_is_not_finished_is_not_taken_for_the_whole(
    prepared: Path, split: str, tmp_path: Path
) -> None:
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    assert len(nyuv2(path=str(tmp_path), validation_share=0).test) == 2
    for folder in (tmp_path / split).iterdir():
        max(folder.iterdir()).unlink()
    with pytest.raises(UsageError, match="the preparation was stopped, call mtobal data prepare nyuv2 again"):
        nyuv2(path=str(tmp_path))
    for content in ("", "[1]", "[" * 100_000):
        (tmp_path / "prepared.json").write_text(content)
        with pytest.raises(UsageError, match=r"prepared\.json: expected"):
            nyuv2(path=str(tmp_path))


def test_two_origins_of_normals_do_not_mix(prepared: Path, published: Path, tmp_path: Path) -> None:
    shutil.copy(prepared / "prepared.json", tmp_path)
    with pytest.raises(UsageError, match=r"'normals': 'depth'.* found .*'normals': 'published'"):
        prepare_nyuv2(published, tmp_path, silent)
    assert json.loads((tmp_path / "prepared.json").read_text())["normals"] == "published"


def test_a_tree_of_somebody_else_is_left_alone(published: Path, tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    with pytest.raises(UsageError, match="train: was not made by this command"):
        prepare_nyuv2(published, tmp_path, silent)


def test_disk_errors_name_the_file(published: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"file.*cannot be written"):
        prepare_nyuv2(published, tmp_path / "file" / "tree", silent)


@pytest.mark.parametrize("name", ["../normals/0000.png", "/etc/normals/0000.png", "normals_gt/../../evil.png"])
def test_an_archive_cannot_write_elsewhere(published: Path, tmp_path: Path, name: str) -> None:
    source = tmp_path / "a" / "source"
    shutil.copytree(published, source)
    write_tar(source / "normals_gt.tgz", {**nyu_normals(), name: png(np.zeros((4, 4), dtype=np.uint8))})
    with pytest.raises(UsageError, match=r"normals_gt\.tgz: holds '.*png' of .* the published archive does not"):
        prepare_nyuv2(source, source, silent)
    assert {path.name for path in tmp_path.iterdir()} == {"a"}
    assert {path.name for path in (tmp_path / "a").iterdir()} == {"source"}
    assert not (source / "normals_gt").exists()


def test_other_files_and_links_in_an_archive_are_left_in_it(published: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(published, source)
    members = nyu_normals()
    with tarfile.open(source / "normals_gt.tgz", "w:gz") as archive:
        for name, content in [*members.items(), ("normals_gt/README", b"text")]:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        link = tarfile.TarInfo("normals_gt/normals/0999.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    prepare_nyuv2(source, tmp_path / "tree", silent)
    files = {path.relative_to(source).as_posix() for path in (source / "normals_gt").rglob("*.*")}
    assert files == set(members)
    shutil.rmtree(source / "normals_gt")
    write_tar(source / "normals_gt.tgz", {"other/file.png": b""})
    with pytest.raises(UsageError, match=r"tgz: expected files such as normals_gt/normals/0000\.png, found none"):
        prepare_nyuv2(source, tmp_path / "tree", silent)


def test_an_archive_that_is_cut_off_is_named_and_can_be_replaced(published: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(published, source)
    archive = source / "normals_gt.tgz"
    write_tar(archive, nyu_normals())
    whole = archive.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"no archive"):
        archive.write_bytes(content)
        with pytest.raises(UsageError, match=r"normals_gt\.tgz: cannot be unpacked"):
            prepare_nyuv2(source, source, silent)
    archive.write_bytes(whole)
    assert "published archive" in prepare_nyuv2(source, source, silent)


def test_a_missing_normal_is_named(with_normals: Path, published: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(published, source)
    members = nyu_normals()
    del members["normals_gt/masks/0002.png"]
    write_tar(source / "normals_gt.tgz", members)
    with pytest.raises(UsageError, match=r"masks/0002\.png: expected a file, found nothing"):
        prepare_nyuv2(source, source, silent)


def replace(path: Path, key: str, values: np.ndarray | None) -> None:
    with h5py.File(path, "r+") as file:
        del file[key]
        if values is not None:
            file[key] = values


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "expected train/ and val/, or nyu_depth_v2_labeled.mat"),
        (lambda path: path.write_bytes(path.read_bytes()[:100_000]), "labeled.mat: expected an HDF5 file"),
        (lambda path: path.write_bytes(b"MATLAB 5.0 MAT-file"), "labeled.mat: expected an HDF5 file"),
        (lambda path: replace(path, "labels", None), "labeled.mat: expected labels as uint16 .* found none"),
        (
            lambda path: replace(path, "depths", np.zeros((6, 480, 640), dtype=np.float32)),
            r"expected depths as float32 of shape \(N, 640, 480\), found float32 of shape \(6, 480, 640\)",
        ),
        (
            lambda path: replace(path, "images", np.zeros((2, 3, 640, 480), dtype=np.uint8)),
            "for all 6 images of splits.mat, found 2 and 6",
        ),
        (lambda path: (path.parent / "splits.mat").unlink(), "splits.mat: expected a file, found nothing"),
        (
            lambda path: (path.parent / "splits.mat").write_bytes(b"\x00" * 300),
            "splits.mat: expected a MATLAB 5 file",
        ),
        (lambda path: (path.parent / "splits.mat").write_bytes(b""), "splits.mat: expected a MATLAB 5 file"),
        (
            lambda path: savemat(path.parent / "splits.mat", {"trainNdxs": [[0]], "testNdxs": [[1]]}),
            "splits.mat: expected trainNdxs, the numbers of its images from 1",
        ),
        (
            lambda path: savemat(path.parent / "splits.mat", {"trainNdxs": [[np.inf]], "testNdxs": [[1]]}),
            "splits.mat: expected trainNdxs, the numbers of its images from 1",
        ),
        (
            lambda path: savemat(path.parent / "splits.mat", {"trainNdxs": [[1, 2]], "testNdxs": [[2]]}),
            "splits.mat: expected splits without a common image",
        ),
        (
            lambda path: savemat(path.parent / "splits.mat", {"trainNdxs": [[1]], "testNdxs": [[7]]}),
            "for all 7 images of splits.mat, found 6",
        ),
    ],
)
def test_broken_published_files_are_named(published: Path, tmp_path: Path, damage: object, message: str) -> None:
    shutil.copytree(published, tmp_path, dirs_exist_ok=True)
    damage(tmp_path / "nyu_depth_v2_labeled.mat")  # type: ignore[operator]
    for use in (lambda: nyuv2(path=str(tmp_path)), lambda: prepare_nyuv2(tmp_path, tmp_path / "tree", silent)):
        with pytest.raises(UsageError) as caught:
            use()
        assert str(tmp_path) in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match=message):
        nyuv2(path=str(tmp_path))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32, np.float64])
def test_splits_of_every_kind_are_read(packed: bool, dtype: type, tmp_path: Path) -> None:
    contents = {
        "note": "of strings, structures and cells there is nothing to read",
        "table": {"a": [1.0, 2.0]},
        "cells": np.array(["a", [1, 2]], dtype=object),
        "trainNdxs": np.arange(1, 100, dtype=dtype)[:, None],
        "one": np.array([[7]], dtype=dtype),
    }
    savemat(tmp_path / "splits.mat", contents, do_compression=packed)
    found = read_numbers(tmp_path / "splits.mat")
    assert found.keys() == {"trainNdxs", "one"}
    assert found["trainNdxs"].tolist() == list(range(1, 100))
    assert found["one"].tolist() == [7]


@pytest.mark.parametrize("packed", [False, True])
def test_splits_that_are_cut_off_or_damaged_are_read_or_told(packed: bool, tmp_path: Path) -> None:
    path = tmp_path / "splits.mat"
    savemat(path, {"trainNdxs": np.arange(1, 40)[:, None], "testNdxs": [[50]]}, do_compression=packed)
    whole = path.read_bytes()
    complete = []
    for length in range(128, len(whole)):
        path.write_bytes(whole[:length])
        try:
            complete.append(read_numbers(path).keys())
        except UsageError:
            continue
    assert complete == [set(), {"trainNdxs"}], "it is whole only where one array ends and another begins"
    rng = random.Random(0)
    told = 0
    for _ in range(500):
        damaged = bytearray(whole)
        for _ in range(3):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        path.write_bytes(damaged)
        try:
            read_numbers(path)
        except UsageError:
            told += 1
    assert told > 50


def test_the_check_of_the_published_file_tells_another_checksum_and_bad_images(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "nyu_depth_v2_labeled.mat"
    shutil.copytree(published, tmp_path, dirs_exist_ok=True)
    monkeypatch.setattr(original_module, "LABELED_MD5", hashlib.md5(path.read_bytes()).hexdigest())
    assert list(find_problems(check_nyuv2(tmp_path))) == [None] * 7
    with h5py.File(path, "r+") as file:
        file["labels"][3] = 895
    problems = [problem for problem in find_problems(check_nyuv2(tmp_path)) if problem]
    assert len(problems) == 2
    assert problems[0].startswith(f"{path}: expected the published file with MD5 ")
    assert problems[1] == f"{path}: image 3: expected labels up to 894, found 895."


def test_the_check_of_a_tree_expects_all_images(prepared: Path) -> None:
    problems = [problem for problem in find_problems(check_nyuv2(prepared)) if problem]
    assert len(problems) == 10  # five folders in each split
    assert (
        f"{prepared / 'train' / 'image' / '4.npy'}: is missing, and 790 more are; expected 795 files." in problems
    )


def test_validation_is_held_out_of_training(tmp_path: Path) -> None:
    write_scenes(tmp_path, {"train": 10, "val": 3}, (6, 8), "label", normals=True)
    data = nyuv2(path=str(tmp_path), validation_share=0.3)
    splits = [data.train, data.validation, data.test]
    assert [len(split) for split in splits] == [7, 3, 3]
    assert sorted([*data.train.keys, *data.validation.keys]) == list(range(10))  # type: ignore[attr-defined]
    again = nyuv2(path=str(tmp_path), validation_share=0.3)
    assert again.validation.keys == data.validation.keys  # type: ignore[attr-defined]
    other = nyuv2(path=str(tmp_path), validation_share=0.3, seed=1)
    assert other.validation.keys != data.validation.keys  # type: ignore[attr-defined]
    assert data.train.augment is not None
    assert data.validation.augment is data.test.augment is None


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Worker processes compute on one thread; interpolation on several rounds otherwise."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("source", ["tree", "published"])
def test_worker_processes_change_nothing(published: Path, tmp_path: Path, source: str) -> None:
    if source == "tree":
        write_scenes(tmp_path, {"train": 5, "val": 2}, (12, 16), "label", normals=True)
    data = nyuv2(path=str(tmp_path if source == "tree" else published), validation_share=0)
    batches = []
    for workers in (0, 2):
        loader = training_loader(data.train, batch_size=2, seed=0, workers=workers)
        for epoch in (0, 1):
            loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
            batches.append(list(loader))
    here, there = batches[0] + batches[1], batches[2] + batches[3]
    assert len(here) == len(there)
    for (image, targets), (image_, targets_) in zip(here, there, strict=True):
        assert torch.equal(image, image_)
        for name in targets:
            assert torch.equal(targets[name], targets_[name])
    assert not torch.equal(batches[0][0][0], batches[1][0][0])


def test_an_error_in_a_worker_process_names_the_file(tmp_path: Path) -> None:
    write_scenes(tmp_path, {"train": 3, "val": 2}, (6, 8), "label", normals=True)
    data = nyuv2(path=str(tmp_path), validation_share=0)
    (tmp_path / "val" / "depth" / "1.npy").write_bytes(b"")
    with pytest.raises(UsageError, match=r"depth/1\.npy: expected a NumPy array"):
        list(evaluation_loader(data.test, workers=1))


def test_the_tasks_train_on_a_batch(tmp_path: Path) -> None:
    write_scenes(tmp_path, {"train": 4, "val": 2}, (24, 32), "label", normals=True)
    data = nyuv2(path=str(tmp_path), validation_share=0)
    inputs, targets = next(iter(training_loader(data.train, batch_size=4, seed=0)))
    layer = torch.nn.Conv2d(3, sum(task.out_features for task in data.tasks), 1)
    outputs = layer(inputs).split([task.out_features for task in data.tasks], dim=1)
    for task, output in zip(data.tasks, outputs, strict=True):
        loss = task.loss(output, targets[task.name])
        assert loss.isfinite()
        assert loss > 0
        assert loss.grad_fn is not None


def test_the_published_file_can_be_sent_to_another_process(published: Path) -> None:
    data = nyuv2(path=str(published), validation_share=0)
    first = data.test[0][0]
    copy = pickle.loads(pickle.dumps(data.test))
    assert torch.equal(copy[0][0], first)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "path is missing; give it a text"),
        ({"path": "nowhere"}, "expected its files at nowhere, found nothing there; get http"),
        ({"path": "nowhere", "classes": 12}, "classes should be one of 13, 40, not 12"),
    ],
)
def test_wrong_options_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load("nyuv2", **options)


def test_a_share_that_leaves_nothing_is_refused(tmp_path: Path) -> None:
    write_scenes(tmp_path, {"train": 3, "val": 2}, (6, 8), "label", normals=True)
    with pytest.raises(UsageError, match="validation_share should be from 0 to below 1, not 1"):
        nyuv2(path=str(tmp_path), validation_share=1.0)
