"""CIFAR-MTL: the published archive or folder, 20 tasks, three kinds of batches, and broken files."""

from __future__ import annotations

import hashlib
import os
import pickle
import tarfile
from collections import Counter
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest
import torch

from data_files import CIFAR_TEST, CIFAR_TRAIN, cifar_files, python2_pickle, write_tar
from mtobal.data import cifar_mtl as module
from mtobal.data import evaluation_loader, load, training_loader
from mtobal.data.cifar_mtl import MEAN, STD, check_cifar_mtl, cifar_mtl, shift_and_flip
from mtobal.data.inspection import find_problems
from mtobal.errors import UsageError

FILES = cifar_files()


@pytest.fixture(autouse=True)
def checksums(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MD5", {name: hashlib.md5(content).hexdigest() for name, content in FILES.items()})


def folder(root: Path, **changes: bytes | None) -> Path:
    (root / "cifar-100-python").mkdir()
    for name, content in {**FILES, **changes}.items():
        if content is not None:
            (root / "cifar-100-python" / name).write_bytes(content)
    return root


def archive(root: Path, **changes: bytes) -> Path:
    members = {f"cifar-100-python/{name}": content for name, content in {**FILES, **changes}.items()}
    write_tar(root / "cifar-100-python.tar.gz", members)
    return root


def trust(monkeypatch: pytest.MonkeyPatch, name: str, content: bytes) -> None:
    """Take a changed file for the published one, so that what comes after the checksum is seen."""
    monkeypatch.setitem(module.MD5, name, hashlib.md5(content).hexdigest())


def raw(images: torch.Tensor) -> torch.Tensor:
    return ((images * STD.view(3, 1, 1) + MEAN.view(3, 1, 1)) * 255).round().long()


def test_archive_folder_and_what_holds_them_are_the_same(tmp_path: Path) -> None:
    root = archive(folder(tmp_path))
    (tmp_path / "elsewhere").mkdir()
    (root / "cifar-100-python.tar.gz").rename(tmp_path / "elsewhere" / "cifar-100-python.tar.gz")
    places = [root, root / "cifar-100-python", tmp_path / "elsewhere"]
    places.append(tmp_path / "elsewhere" / "cifar-100-python.tar.gz")
    tests = [load("cifar_mtl", path=str(place)).test[torch.arange(CIFAR_TEST)] for place in places]
    for inputs, targets in tests[1:]:
        assert torch.equal(inputs, tests[0][0])
        for name, target in targets.items():
            assert torch.equal(target, tests[0][1][name])


def test_every_image_has_a_label_of_its_own_task_alone(tmp_path: Path) -> None:
    data = cifar_mtl(path=str(folder(tmp_path)), validation_share=0)
    inputs, targets = data.test[torch.arange(CIFAR_TEST)]
    assert inputs.shape == (CIFAR_TEST, 3, 32, 32)
    assert data.input_shape == (3, 32, 32)
    labels = torch.stack(list(targets.values()))
    assert ((labels >= 0).sum(dim=0) == 1).all()
    assert Counter(labels[labels >= 0].tolist()) == dict.fromkeys(range(5), CIFAR_TEST // 5)
    fine = raw(inputs)[:, 0, 5, 5]
    assert torch.equal(raw(inputs)[:, 2, 0, 0], fine + 100)
    assert torch.equal(raw(inputs)[:, 0, 0], torch.arange(32).expand(CIFAR_TEST, 32))
    for target in targets.values():
        # Within a task, a greater class has a greater label.
        classes = fine[target >= 0].unique()
        assert len(classes) == 5
        assert [int(target[(fine == value) & (target >= 0)].unique()) for value in classes] == list(range(5))
    assert [task.name for task in data.tasks] == [f"group_{i}" for i in range(20)] == list(targets)
    assert {task.out_features for task in data.tasks} == {5}


def test_validation_holds_every_class_in_proportion(tmp_path: Path) -> None:
    data = cifar_mtl(path=str(folder(tmp_path)), validation_share=0.5)
    parts = [raw(part[torch.arange(len(part))][0])[:, 0, 5, 5] for part in (data.train, data.validation)]
    assert [Counter(part.tolist()) for part in parts] == [dict.fromkeys(range(100), 3)] * 2


def test_batches_of_one_task(tmp_path: Path) -> None:
    data = cifar_mtl(path=str(folder(tmp_path)), batching="one_task", validation_share=0)
    loader = training_loader(data.train, batch_size=8, seed=0)
    order = []
    samples = 0
    for inputs, targets in loader:
        (present,) = [name for name, target in targets.items() if (target >= 0).any()]
        assert (targets[present] >= 0).all()
        order.append(present)
        samples += len(inputs)
    assert samples == CIFAR_TRAIN
    assert len(order) == len(loader) == 80
    assert len(set(order)) == 20
    assert len(list(groupby(order))) > 60, "the tasks should lie scattered"


def test_a_batch_for_every_task(tmp_path: Path) -> None:
    data = cifar_mtl(path=str(folder(tmp_path)), batching="per_task", validation_share=0.1)
    batches = list(training_loader(data.train, batch_size=8, seed=0))
    assert len(batches) == 4  # 27 or so of each task
    for inputs, targets in batches:
        assert inputs.keys() == targets.keys() == {task.name for task in data.tasks}
        for name in inputs:
            assert inputs[name].shape == (8, 3, 32, 32)
            assert (targets[name] >= 0).all()
    seen = [(inputs, targets) for inputs, targets in evaluation_loader(data.test, batch_size=8)]
    for task in data.tasks:
        assert sum(len(targets[task.name]) for _, targets in seen if task.name in targets) == CIFAR_TEST // 20


def test_shift_and_flip_move_the_whole_image() -> None:
    black = -MEAN / STD
    images = black.view(1, 3, 1, 1).repeat(300, 1, 32, 32)
    images[:, :, 10, 12] = 1.0
    moved, _ = shift_and_flip((images, {}), torch.Generator().manual_seed(0))
    places = (moved == 1).nonzero()
    assert len(places) == 900
    row, column = places[:, 2].view(300, 3)[:, 0] - 10, places[:, 3].view(300, 3)[:, 0]
    assert places[:, 2].view(300, 3).unique(dim=1).shape == (300, 1)
    assert set(row.tolist()) == set(range(-4, 5))
    shifts = set((column - 12).tolist()) | set((column - 19).tolist())
    assert shifts >= set(range(-4, 5))
    assert ((column - 12).abs().le(4) | (column - 19).abs().le(4)).all()
    rest = torch.where(moved == 1, black.view(1, 3, 1, 1), moved)
    assert torch.equal(rest, black.view(1, 3, 1, 1).expand_as(moved))


def test_augmentation_is_for_training_alone(tmp_path: Path) -> None:
    data = cifar_mtl(path=str(folder(tmp_path)), augment=True)
    assert data.train.augment is shift_and_flip
    assert data.validation.augment is data.test.augment is None


def test_a_changed_file_is_refused_by_its_checksum_before_it_is_looked_into(tmp_path: Path) -> None:
    made = tmp_path / "made"

    class Command:
        def __reduce__(self) -> tuple[object, ...]:
            return os.mkdir, (str(made),)

    place = folder(tmp_path, train=pickle.dumps(Command()))
    with pytest.raises(UsageError, match="cifar-100-python: train: expected the published file with MD5"):
        cifar_mtl(path=str(place))
    assert not made.exists()


def test_a_hostile_file_with_the_right_checksum_does_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = b"cos\nsystem\n(S'true'\ntR."
    trust(monkeypatch, "train", content)
    with pytest.raises(UsageError, match=r"train: .* it asks for os\.system"):
        cifar_mtl(path=str(folder(tmp_path, train=content)))


def changed(**changes: object) -> bytes:
    labels = np.arange(100)
    content = {
        "data": np.zeros((100, 3072), dtype=np.uint8),
        "fine_labels": labels.tolist(),
        "coarse_labels": (labels // 5).tolist(),
    }
    return python2_pickle({**content, **changes})


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train", python2_pickle([1]), "train: expected a dictionary, found list"),
        ("train", changed(data=[1]), r"train: expected data of shape \(N, 3072\)"),
        ("train", changed(data=np.zeros((100, 3071), dtype=np.uint8)), r"expected data of shape \(N, 3072\)"),
        ("train", changed(data=np.zeros((100, 3072), dtype=np.float32)), "type uint8"),
        ("train", changed(fine_labels=[1, 2]), "expected fine_labels, 100 whole numbers from 0 to 99"),
        ("train", changed(fine_labels=[100] * 100), "expected fine_labels"),
        ("test", changed(coarse_labels=["a"] * 100), "test: expected coarse_labels"),
        ("train", changed(coarse_labels=[0] * 100), "expected 20 superclasses of 5 classes each"),
        ("train", changed(), "expected the same superclasses in train and test"),
        ("meta", python2_pickle({"fine_label_names": []}), "meta: expected the 20 names"),
        ("meta", FILES["meta"][:-20], "meta: expected a pickle"),
    ],
)
def test_what_is_wrong_with_a_file_is_told(
    name: str, content: bytes, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trust(monkeypatch, name, content)
    with pytest.raises(UsageError, match=message) as caught:
        cifar_mtl(path=str(folder(tmp_path, **{name: content})))
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="or the folder cifar-100-python, found neither"):
        cifar_mtl(path=str(tmp_path))
    with pytest.raises(UsageError, match="nowhere: expected"):
        cifar_mtl(path=str(tmp_path / "nowhere"))
    with pytest.raises(UsageError, match="cifar-100-python/test: expected a file, found nothing"):
        cifar_mtl(path=str(folder(tmp_path, test=None)))


def test_a_pipe_in_place_of_a_file_does_not_hang(tmp_path: Path) -> None:
    place = folder(tmp_path, train=None)
    os.mkfifo(place / "cifar-100-python" / "train")
    with pytest.raises(UsageError, match="train: expected a file, found something else"):
        cifar_mtl(path=str(place))


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "cifar-100-python/../../evil"])
def test_an_archive_with_a_path_that_leads_outside_is_refused(tmp_path: Path, name: str) -> None:
    members = {name: b"evil", **{f"cifar-100-python/{key}": value for key, value in FILES.items()}}
    write_tar(tmp_path / "cifar-100-python.tar.gz", members)
    with pytest.raises(UsageError, match=r"tar\.gz: holds '.*evil' of 4 bytes, which the published"):
        cifar_mtl(path=str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["cifar-100-python.tar.gz"]


def test_a_link_in_an_archive_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(FILES["train"])
    with tarfile.open(tmp_path / "cifar-100-python.tar.gz", "w:gz") as tar:
        member = tarfile.TarInfo("cifar-100-python/train")
        member.type, member.linkname = tarfile.SYMTYPE, str(tmp_path / "secret")
        tar.addfile(member)
    with pytest.raises(UsageError, match=r"expected cifar-100-python/train in it, found none"):
        cifar_mtl(path=str(tmp_path))


def test_a_damaged_archive_is_named(tmp_path: Path) -> None:
    place = archive(tmp_path) / "cifar-100-python.tar.gz"
    whole = place.read_bytes()
    damaged = bytearray(whole)
    damaged[len(whole) // 2] ^= 0xFF
    for content in (whole[:100], whole[: len(whole) // 2], bytes(damaged), b"", b"no archive"):
        place.write_bytes(content)
        with pytest.raises(UsageError, match=r"cifar-100-python\.tar\.gz: ") as caught:
            cifar_mtl(path=str(place))
        assert "\n" not in str(caught.value)


def test_the_check_looks_at_each_file(tmp_path: Path) -> None:
    assert list(find_problems(check_cifar_mtl(archive(tmp_path)))) == [None] * 3
    (tmp_path / "other").mkdir()
    problems = list(find_problems(check_cifar_mtl(folder(tmp_path / "other", test=b"x", meta=None))))
    assert problems[0] is None
    assert "test: expected the published file" in str(problems[1])
    assert "meta: expected a file, found nothing" in str(problems[2])
