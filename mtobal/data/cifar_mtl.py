"""CIFAR-100 as 20 tasks: to tell the five classes of each superclass apart."""

from __future__ import annotations

import io
import tarfile
import zlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Generator, Tensor

from mtobal.data.files import Array, check_md5, open_file
from mtobal.data.inspection import Check
from mtobal.data.multitask import (
    Augmentation,
    Batch,
    BatchPerTask,
    MultiTaskData,
    MultiTaskDataset,
    OneTaskBatches,
)
from mtobal.data.pickles import load_pickle
from mtobal.data.pictures import Pictures
from mtobal.data.splitting import hold_out
from mtobal.errors import UsageError
from mtobal.tasks import Classification
from mtobal.tasks.labels import MISSING

ARCHIVE = "cifar-100-python.tar.gz"
FOLDER = "cifar-100-python"
MD5 = {
    "train": "16019d7e3df5f24257cddd939b257f8d",
    "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
    "meta": "7973b15100ade9c7d40fb424638fde48",
}
MEAN = torch.tensor([0.5071, 0.4865, 0.4409])
STD = torch.tensor([0.2673, 0.2564, 0.2762])
NUM_TASKS, CLASSES_PER_TASK = 20, 5
PADDING = 4
MAX_BYTES = 200_000_000
"""More than the largest file of the archive has."""

Batching = Literal["mixed", "one_task", "per_task"]


def cifar_mtl(
    *,
    path: str,
    batching: Batching = "mixed",
    augment: bool = False,
    validation_share: float = 0.1,
    seed: int = 0,
) -> MultiTaskData:
    """Load CIFAR-100 as 20 tasks of 5 classes each; the tasks have the names of the superclasses.

    Images have 32 x 32 pixels and are normalised. The class of an image within its task is the rank of its number
    among those of the superclass. Validation images are held out of the training images, in proportion.

    Parameters
    ----------
    path : str
        The published archive `cifar-100-python.tar.gz`, the folder that it unpacks to, or a folder that holds
        either.
    batching : str
        What a training batch holds: "mixed", images of all tasks, each with a label for its own task and -1
        for the others; "one_task", images of one task; "per_task", a batch of images for every task.
    augment : bool
        Whether training images are mirrored and shifted at random.
    validation_share : float
        How much of the training images to hold out. With 0 the test images are the validation images too: then
        nothing may be chosen by validation.
    seed : int
        Of that choice; it is not the seed of a training run.
    """
    place = _locate(Path(path))
    contents = _contents(place, "train", "test", "meta")
    train, test = _split(place, "train", contents[0]), _split(place, "test", contents[1])
    names = _task_names(place, contents[2])
    ranks = _ranks(place, train[1], train[2])
    if not np.array_equal(ranks, _ranks(place, test[1], test[2])):
        raise UsageError(f"{place}: expected the same superclasses in train and test, found others.")
    kept, held = hold_out(train[1], validation_share, seed, "data set 'cifar_mtl'")

    def evaluated(images: Array, fine: Array, coarse: Array) -> MultiTaskDataset:
        # Batches of one task would serve nothing here.
        return _dataset(images, ranks[fine], coarse, names, "per_task" if batching == "per_task" else "mixed")

    images, fine, coarse = (array[kept] for array in train)
    test_set = evaluated(*test)
    return MultiTaskData(
        train=_dataset(images, ranks[fine], coarse, names, batching, shift_and_flip if augment else None),
        validation=evaluated(*(array[held] for array in train)) if len(held) else test_set,
        test=test_set,
        tasks=tuple(Classification(name, num_classes=CLASSES_PER_TASK) for name in names),
        input_shape=(3, 32, 32),
    )


def check_cifar_mtl(path: Path) -> list[Check]:
    """Return a look at each of the three files."""
    place = _locate(path)

    def look(name: str) -> None:
        (content,) = _contents(place, name)
        if name == "meta":
            _task_names(place, content)
        else:
            _split(place, name, content)

    return [(place, partial(look, name)) for name in MD5]


def shift_and_flip(batch: Batch, generator: Generator) -> Batch:
    """Shift every image by up to 4 pixels each way over black, and mirror half of them."""
    images, targets = batch
    assert isinstance(images, Tensor)
    number, _, height, width = images.shape
    down, right = torch.randint(2 * PADDING + 1, (2, number, 1), generator=generator)
    # Black is what a byte of zero is after normalisation.
    black = (-MEAN / STD).view(1, 3, 1, 1)
    padded = black.repeat(number, 1, height + 2 * PADDING, width + 2 * PADDING)
    padded[:, :, PADDING:-PADDING, PADDING:-PADDING] = images
    columns = torch.arange(width).repeat(number, 1)
    mirrored = torch.randint(2, (number, 1), generator=generator).bool()
    columns = torch.where(mirrored, columns.flip(1), columns) + right
    rows = torch.arange(height) + down
    samples = torch.arange(number)[:, None, None]
    # Indexing with the channels in the middle puts them last.
    return padded[samples, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous(), targets


def _dataset(
    images: Array,
    ranks: Array,
    coarse: Array,
    names: list[str],
    batching: Batching,
    augment: Augmentation | None = None,
) -> MultiTaskDataset:
    inputs = torch.from_numpy(images)
    labels, groups = torch.from_numpy(ranks), torch.from_numpy(coarse)
    if batching == "per_task":
        return BatchPerTask(
            {
                name: Pictures(inputs[groups == task], {name: labels[groups == task]}, MEAN, STD, augment)
                for task, name in enumerate(names)
            }
        )
    targets = {name: torch.where(groups == task, labels, MISSING) for task, name in enumerate(names)}
    mixed = Pictures(inputs, targets, MEAN, STD, augment)
    return OneTaskBatches(mixed, groups) if batching == "one_task" else mixed


def _ranks(place: Path, fine: Array, coarse: Array) -> Array:
    """Return the rank of every class among those of its superclass."""
    number = NUM_TASKS * CLASSES_PER_TASK
    table = np.zeros((NUM_TASKS, number), dtype=bool)
    table[coarse, fine] = True
    if not ((table.sum(axis=0) == 1).all() and (table.sum(axis=1) == CLASSES_PER_TASK).all()):
        raise UsageError(f"{place}: expected 20 superclasses of 5 classes each, found another grouping.")
    ranks: Array = (table.cumsum(axis=1) - 1)[table.argmax(axis=0), np.arange(number)]
    return ranks


def _task_names(place: Path, content: bytes) -> list[str]:
    found = _unpickled(place, "meta", content)
    names = found.get("coarse_label_names")
    if not isinstance(names, list) or len(set(map(str, names))) != NUM_TASKS:
        raise UsageError(f"{place}: meta: expected the 20 names of the superclasses, found none.")
    return [str(name) for name in names]


def _split(place: Path, split: str, content: bytes) -> tuple[Array, Array, Array]:
    """Return images as (N, 3, 32, 32), classes and superclasses."""
    found = _unpickled(place, split, content)
    images = found.get("data")
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.shape[1:] != (3072,):
        raise UsageError(f"{place}: {split}: expected data of shape (N, 3072) and type uint8, found none.")
    labels = []
    for key, classes in (("fine_labels", NUM_TASKS * CLASSES_PER_TASK), ("coarse_labels", NUM_TASKS)):
        values = found.get(key)
        values = values if isinstance(values, list) else []
        if len(values) != len(images) or not all(type(value) is int and 0 <= value < classes for value in values):
            raise UsageError(
                f"{place}: {split}: expected {key}, {len(images)} whole numbers from 0 to {classes - 1}, "
                "found something else."
            )
        labels.append(np.array(values, dtype=np.int64))
    return images.reshape(-1, 3, 32, 32), labels[0], labels[1]


def _unpickled(place: Path, name: str, content: bytes) -> dict[Any, Any]:
    # The checksum first: what has another is not even looked into.
    check_md5(place, io.BytesIO(content), MD5[name], name)
    found = load_pickle(io.BytesIO(content), len(content), f"{place}: {name}")
    if not isinstance(found, dict):
        raise UsageError(f"{place}: {name}: expected a dictionary, found {type(found).__name__}.")
    return found


def _contents(place: Path, *names: str) -> list[bytes]:
    """Read files from the folder or, without unpacking it, from the archive."""
    if place.is_dir():
        contents = {}
        for name in names:
            with open_file(place / name) as file:
                contents[name] = file.read(MAX_BYTES)
    else:
        contents = _archived(place, names)
    for name in names:
        if name not in contents:
            raise UsageError(f"{place}: expected {FOLDER}/{name} in it, found none.")
    return [contents[name] for name in names]


def _archived(place: Path, names: Sequence[str]) -> dict[str, bytes]:
    contents: dict[str, bytes] = {}
    with open_file(place) as file:
        try:
            with tarfile.open(fileobj=file, mode="r:gz") as archive:
                for member in archive:
                    outside = member.name.startswith("/") or ".." in Path(member.name).parts
                    if outside or member.size > MAX_BYTES:
                        raise UsageError(
                            f"{place}: holds {member.name!r} of {member.size} bytes, which the published archive "
                            "does not."
                        )
                    folder, _, name = member.name.rpartition("/")
                    part = archive.extractfile(member) if folder == FOLDER and member.isreg() else None
                    if part is not None and name in names:
                        contents[name] = part.read()
        except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
            raise UsageError(f"{place}: cannot be unpacked: {error}; it may be cut off, get it again.") from error
    return contents


def _locate(path: Path) -> Path:
    """Return the archive or the folder of the three files."""
    places = [path / FOLDER, path / ARCHIVE, path]
    for place in places[:2]:
        if place.exists():
            return place
    if path.is_file() or (path / "train").exists():
        return path
    raise UsageError(f"{path}: expected {ARCHIVE} or the folder {FOLDER}, found neither.")
