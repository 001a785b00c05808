"""MultiMNIST and its kin: the published pickles, and broken or hostile ones."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from data_files import overlaid_pictures
from mtobal.data import load
from mtobal.data.inspection import find_problems
from mtobal.data.multi_mnist import check_multi_mnist, multi_mnist
from mtobal.errors import UsageError

TRAIN, TRAIN_LABELS, TEST, TEST_LABELS = overlaid_pictures()


def write(path: Path, *arrays: object) -> Path:
    path.write_bytes(pickle.dumps(arrays or (TRAIN, TRAIN_LABELS, TEST, TEST_LABELS), protocol=4))
    return path


@pytest.mark.parametrize("scale", [1, 255])
def test_pictures_and_both_labels(scale: int, tmp_path: Path) -> None:
    write(
        tmp_path / "multi_fashion.pickle", TRAIN / scale, TRAIN_LABELS, TEST / scale, TEST_LABELS.astype(np.uint8)
    )
    data = load("multi_mnist", path=str(tmp_path), variant="fashion")
    assert [len(split) for split in (data.train, data.validation, data.test)] == [36, 4, 10]
    assert data.input_shape == (1, 36, 36)
    inputs, targets = data.test[torch.arange(10)]
    assert torch.allclose(inputs[:, 0], torch.from_numpy(TEST) / 255)
    assert np.array_equal(targets["left"], TEST_LABELS[:, 0])
    assert np.array_equal(targets["right"], TEST_LABELS[:, 1])
    assert targets["left"].dtype == torch.int64
    assert list(find_problems(check_multi_mnist(tmp_path))) == [None]


def test_a_file_is_taken_by_its_path_too(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.pickle", TRAIN[:, None], TRAIN_LABELS, TEST[:, None], TEST_LABELS)
    data = multi_mnist(path=str(path), validation_share=0)
    assert len(data.train) == 40
    assert data.validation is data.test


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([TRAIN, TRAIN_LABELS], "expected four arrays"),
        (
            [TRAIN[:, :28, :28], TRAIN_LABELS, TEST, TEST_LABELS],
            r"training: expected images .* found \(40, 28, 28\)",
        ),
        ([TRAIN, TRAIN_LABELS[:39], TEST, TEST_LABELS], r"training: expected labels of shape \(40, 2\)"),
        ([TRAIN, TRAIN_LABELS, TEST, "labels"], r"test: expected labels of shape \(10, 2\), found no array"),
        ([TRAIN, TRAIN_LABELS + 5, TEST, TEST_LABELS], "training: expected labels from 0 to 9"),
        ([TRAIN, TRAIN_LABELS / 2, TEST, TEST_LABELS], "training: expected labels from 0 to 9"),
        ([TRAIN * -1.0, TRAIN_LABELS, TEST, TEST_LABELS], "training: expected shades"),
        ([TRAIN * np.nan, TRAIN_LABELS, TEST, TEST_LABELS], "training: expected shades"),
        ([TRAIN, TRAIN_LABELS, TEST[:0], TEST_LABELS[:0]], "test: expected images, found none"),
    ],
)
def test_what_is_wrong_with_a_file_is_told(content: list[object], message: str, tmp_path: Path) -> None:
    path = write(tmp_path / "multi_mnist.pickle", *content)
    with pytest.raises(UsageError, match=message) as caught:
        multi_mnist(path=str(tmp_path))
    assert str(caught.value).startswith(f"{path}: ")
    assert list(find_problems(check_multi_mnist(tmp_path))) == [str(caught.value)]


def test_files_that_are_missing_cut_off_or_hostile(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"multi_mnist\.pickle: expected a file, found nothing"):
        multi_mnist(path=str(tmp_path))
    with pytest.raises(UsageError, match="or some of them, found none"):
        check_multi_mnist(tmp_path)
    path = write(tmp_path / "multi_mnist.pickle")
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(UsageError, match=r"multi_mnist\.pickle: expected a pickle .* ends in the middle"):
        multi_mnist(path=str(tmp_path))

    class Command:
        def __reduce__(self) -> tuple[object, ...]:
            return os.mkdir, (str(tmp_path / "made"),)

    write(path, Command())
    with pytest.raises(UsageError, match=r"it asks for posix\.mkdir"):
        multi_mnist(path=str(tmp_path))
    assert not (tmp_path / "made").exists()
