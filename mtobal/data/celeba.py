"""CelebA: 40 yes-or-no attributes of 202,599 faces, a task each."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from mtobal.data.files import Array, open_file, require_folder
from mtobal.data.images import read_image
from mtobal.data.inspection import Check, expect_count
from mtobal.data.multitask import Batch, FileDataset, MultiTaskData
from mtobal.errors import UsageError
from mtobal.tasks import MultiLabel
from mtobal.tasks.labels import MISSING

ATTRIBUTES = "list_attr_celeba.txt"
PARTITION = "list_eval_partition.txt"
IMAGES = "img_align_celeba"
NUM_ATTRIBUTES = 40
SPLITS = ("train", "validation", "test")
COUNT = 202_599


def celeba(*, path: str, size: int = 64) -> MultiTaskData:
    """Load CelebA; each attribute is a task with its published name.

    Parameters
    ----------
    path : str
        The folder with `list_attr_celeba.txt`, `list_eval_partition.txt` and the folder `img_align_celeba`, which
        may lie in folders Anno, Eval and Img as they are published. An attribute is 1 or -1; where it is 0, the
        face has no label of it.
    size : int
        Height and width to which the faces are scaled.
    """
    if size < 1:
        raise UsageError(f"data set 'celeba': size should be at least 1, not {size}.")
    folder = Path(path)
    faces = _Faces.open(folder, size)
    partition = _partition(folder, faces.files)
    splits = [FileDataset(np.flatnonzero(partition == split).tolist(), faces.read) for split in range(len(SPLITS))]
    for name, split in zip(SPLITS, splits, strict=True):
        if not len(split):
            raise UsageError(
                f"{_find(folder, 'Eval', PARTITION)}: expected faces of every split, none is of {name}."
            )
    return MultiTaskData(
        train=splits[0],
        validation=splits[1],
        test=splits[2],
        tasks=tuple(MultiLabel(name) for name in faces.names),
        input_shape=(3, size, size),
    )


def check_celeba(folder: Path) -> list[Check]:
    """Return a look at the two lists and at every image."""
    faces = _Faces.open(folder, size=64)
    return [
        (folder, partial(expect_count, str(folder), len(faces.files), COUNT)),
        (folder, partial(_partition, folder, faces.files)),
        *((faces.images / file, partial(read_image, faces.images / file)) for file in faces.files),
    ]


@dataclass(frozen=True)
class _Faces:
    images: Path
    files: list[str]
    names: list[str]
    labels: Array
    size: int

    @classmethod
    def open(cls, folder: Path, size: int) -> _Faces:
        require_folder(folder, f"{ATTRIBUTES}, {PARTITION} and {IMAGES}")
        images = _find(folder, "Img", IMAGES)
        require_folder(images, "the faces")
        path = _find(folder, "Anno", ATTRIBUTES)
        lines = _lines(path)
        names = lines[1].split() if len(lines) > 1 else []
        if len(names) != NUM_ATTRIBUTES or len(set(names)) != NUM_ATTRIBUTES:
            raise UsageError(f"{path}, line 2: expected {NUM_ATTRIBUTES} names of attributes, found {len(names)}.")
        rows = lines[2:]
        if lines[0].strip() != str(len(rows)):
            first = lines[0].strip()[:20]
            raise UsageError(f"{path}: expected as many faces as its first line says, {first}, found {len(rows)}.")
        files = []
        labels = np.empty((len(rows), NUM_ATTRIBUTES), dtype=np.int8)
        for i, row in enumerate(rows):
            file, *values = row.split() or [""]
            if len(values) != NUM_ATTRIBUTES or not set(values) <= {"-1", "0", "1"} or not _is_plain(file):
                raise UsageError(f"{path}, line {i + 3}: expected a file and {NUM_ATTRIBUTES} times 1 or -1.")
            files.append(file)
            labels[i] = values
        # Published: 1, -1, and 0 for what nobody said. In a task: 1, 0, and -1.
        return cls(images, files, names, np.array([MISSING, 1, 0], dtype=np.int8)[labels], size)

    def read(self, index: int) -> Batch:
        pixels = read_image(self.images / self.files[index], size=(self.size, self.size))
        image = torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255
        labels = torch.from_numpy(self.labels[index].astype(np.int64))[:, None]
        return image, dict(zip(self.names, labels, strict=True))


def _partition(folder: Path, files: list[str]) -> Array:
    path = _find(folder, "Eval", PARTITION)
    lines = _lines(path)
    if len(lines) != len(files):
        raise UsageError(f"{path}: expected a line for each of {len(files)} faces, found {len(lines)}.")
    partition = np.empty(len(files), dtype=np.int8)
    for i, (line, file) in enumerate(zip(lines, files, strict=True)):
        found, _, split = line.partition(" ")
        if found != file or split.strip() not in ("0", "1", "2"):
            raise UsageError(f"{path}, line {i + 1}: expected {file} and 0, 1 or 2, found {line[:80]!r}.")
        partition[i] = int(split)
    return partition


def _find(folder: Path, published: str, name: str) -> Path:
    return folder / published / name if (folder / published / name).exists() else folder / name


def _lines(path: Path) -> list[str]:
    with open_file(path) as file:
        return file.read().decode("utf-8", errors="replace").splitlines()


def _is_plain(file: str) -> bool:
    return bool(file) and "/" not in file and "\\" not in file and not file.startswith(".")
