"""Cityscapes: the layout of MTAN, its versions, and its check."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from data_files import write_scenes
from mtobal.data import cityscapes as module
from mtobal.data import load, training_loader
from mtobal.data.cityscapes import check_cityscapes, cityscapes
from mtobal.data.inspection import find_problems
from mtobal.errors import UsageError


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_scenes(tmp_path, {"train": 6, "val": 2}, (16, 32), "label_7", normals=False)
    monkeypatch.setattr(module, "COUNTS", {"train": 6, "val": 2})
    return tmp_path


def test_two_tasks_in_three_splits(root: Path) -> None:
    data = load("cityscapes", path=str(root), validation_share=0.5)
    assert [len(split) for split in (data.train, data.validation, data.test)] == [3, 3, 2]
    assert [(task.name, task.out_features) for task in data.tasks] == [("segmentation", 7), ("depth", 1)]
    assert data.input_shape == (3, 16, 32)
    image, targets = data.test[1]
    assert np.array_equal(image.permute(1, 2, 0), np.load(root / "val/image/1.npy").astype(np.float32))
    assert np.array_equal(targets["segmentation"], np.load(root / "val/label_7/1.npy"))
    assert np.array_equal(targets["depth"][0], np.load(root / "val/depth/1.npy")[..., 0])
    inputs, targets = next(iter(training_loader(data.train, batch_size=3, seed=0)))
    assert inputs.shape == (3, 3, 16, 32)
    assert targets.keys() == {"segmentation", "depth"}
    assert list(find_problems(check_cityscapes(root))) == [None] * (2 * 3 * 2 + 3 * (6 + 2))


def test_nineteen_classes_and_the_shorter_name_of_seven(root: Path) -> None:
    for split in ("train", "val"):
        shutil.copytree(root / split / "label_7", root / split / "label_19")
        (root / split / "label_7").rename(root / split / "label")
    assert cityscapes(path=str(root), classes=19).tasks[0].out_features == 19
    assert cityscapes(path=str(root), classes=7).tasks[0].out_features == 7
    np.save(root / "train/label_19/0.npy", np.full((16, 32), 18))
    assert not any(find_problems(check_cityscapes(root)))
    np.save(root / "train/label_19/0.npy", np.full((16, 32), 19))
    problems = [problem for problem in find_problems(check_cityscapes(root)) if problem]
    assert problems == [f"{root / 'train/label_19/0.npy'}: expected labels from -1 to 18, found 19 to 19."]


def test_a_zoom_brings_nearer_or_does_as_it_was_published(root: Path) -> None:
    ratios = []
    for zoomed in ("exact", "published"):
        data = cityscapes(path=str(root), zoomed_depth=zoomed, validation_share=0)  # type: ignore[arg-type]
        batches = training_loader(data.train, batch_size=6, seed=0)
        ratios.append(next(iter(batches))[1]["depth"])
    ratio = ratios[0] / ratios[1]
    found = {round(float(value), 2) for value in ratio[ratio.isfinite()].unique()}
    assert found <= {1.0, 1.44, 2.25}
    assert len(found) > 1


def test_missing_parts_are_named(root: Path) -> None:
    for split in ("train", "val"):  # a name that stands for seven classes alone
        (root / split / "label_7").rename(root / split / "label")
    with pytest.raises(UsageError, match="label_19: expected a folder with files"):
        cityscapes(path=str(root), classes=19)
    with pytest.raises(
        UsageError, match="nowhere/train: expected a folder with the folders image, depth and label_7"
    ):
        cityscapes(path=str(root / "nowhere"))
    with pytest.raises(UsageError, match=r"nowhere/train/image/0\.npy: expected a file"):
        check_cityscapes(root / "nowhere")
    shutil.rmtree(root / "val")
    with pytest.raises(UsageError, match="val: expected a folder"):
        cityscapes(path=str(root))
    assert any("val/depth: expected a folder" in str(problem) for problem in find_problems(check_cityscapes(root)))


def test_two_sizes_do_not_mix(root: Path) -> None:
    shutil.rmtree(root / "val")
    write_scenes(root, {"val": 2}, (8, 16), "label_7", normals=False)
    with pytest.raises(
        UsageError, match=r"expected images of one size, found \(16, 32\) in train and \(8, 16\) in val"
    ):
        cityscapes(path=str(root))


def test_the_signs_of_mirrored_images_agree(root: Path) -> None:
    data = cityscapes(path=str(root), validation_share=0)
    batch = data.train.training_batch(torch.arange(6), seed=1)
    again = data.train.training_batch(torch.arange(6), seed=1)
    assert torch.equal(batch[0], again[0])
