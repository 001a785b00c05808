"""Office-31 and Office-Home: the same objects in several styles, each of which is a task with its own pictures."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from mtobal.data.files import open_file, require_folder
from mtobal.data.images import read_image
from mtobal.data.inspection import Check, expect_count
from mtobal.data.multitask import Batch, BatchPerTask, FileDataset, MultiTaskData
from mtobal.errors import UsageError
from mtobal.tasks import Classification

MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
SPLITS = ("train", "val", "test")

Version = Literal["office-31", "office-home"]

CLASSES: dict[Version, int] = {"office-31": 31, "office-home": 65}
COUNTS: dict[Version, dict[str, tuple[int, int, int]]] = {
    "office-31": {"amazon": (1680, 552, 585), "dslr": (287, 89, 122), "webcam": (466, 149, 180)},
    "office-home": {
        "Art": (1435, 465, 527),
        "Clipart": (2596, 846, 923),
        "Product": (2635, 860, 944),
        "Real_World": (2586, 846, 925),
    },
}
"""Pictures of training, validation and test, by task."""


def office(*, path: str, lists: str = "", version: Version = "office-31", size: int = 224) -> MultiTaskData:
    """Load Office-31 (`amazon`, `dslr`, `webcam`) or Office-Home (`Art`, `Clipart`, `Product`, `Real_World`).

    A batch holds pictures and labels by task. Pictures are normalised as those of ImageNet.

    Parameters
    ----------
    path : str
        The folder of the pictures, as it was published.
    lists : str
        The folder of `amazon_train.txt` and so on, with lines such as "amazon/images/bike/frame_0001.jpg 2". By
        default it is that of the pictures.
    version : str
        "office-31" or "office-home".
    size : int
        Height and width to which the pictures are scaled.
    """
    if size < 1:
        raise UsageError(f"data set 'office': size should be at least 1, not {size}.")
    folder = Path(path)
    require_folder(folder, "the pictures")
    listed = Path(lists) if lists else folder
    splits = []
    for split in SPLITS:
        parts = {}
        for task in COUNTS[version]:
            rows = _rows(listed / f"{task}_{split}.txt", CLASSES[version])
            parts[task] = FileDataset(rows, partial(_read, folder, task, size))
        splits.append(BatchPerTask(parts))
    return MultiTaskData(
        train=splits[0],
        validation=splits[1],
        test=splits[2],
        tasks=tuple(Classification(task, num_classes=CLASSES[version]) for task in COUNTS[version]),
        input_shape=(3, size, size),
    )


def check_office(folder: Path) -> list[Check]:
    """Return a look at every list and every picture; which version it is, the lists tell by their names."""
    require_folder(folder, "the pictures and the lists")
    version: Version = "office-home" if (folder / "Art_train.txt").exists() else "office-31"
    looks: list[Check] = []
    for task, counts in COUNTS[version].items():
        for split, count in zip(SPLITS, counts, strict=True):
            path = folder / f"{task}_{split}.txt"
            looks.append((path, partial(_check_list, path, CLASSES[version], count)))
            try:
                rows = _rows(path, CLASSES[version])
            except UsageError:  # which the look at the list tells
                continue
            looks += [(folder / file, partial(read_image, folder / file)) for file, _ in rows]
    return looks


def _check_list(path: Path, classes: int, count: int) -> None:
    expect_count(str(path), len(_rows(path, classes)), count)


def _rows(path: Path, classes: int) -> list[tuple[str, int]]:
    with open_file(path) as file:
        lines = file.read().decode("utf-8", errors="replace").splitlines()
    numbers = {str(label): label for label in range(classes)}
    rows = []
    for number, line in enumerate(lines, start=1):
        file_name, _, label = line.strip().rpartition(" ")
        outside = file_name.startswith("/") or ".." in Path(file_name).parts
        if not file_name or outside or label not in numbers:
            raise UsageError(
                f"{path}, line {number}: expected a file below the folder and a class from 0 to {classes - 1}, "
                f"found {line[:80]!r}."
            )
        rows.append((file_name, numbers[label]))
    if not rows:
        raise UsageError(f"{path}: expected lines with a file and a class each, found none.")
    return rows


def _read(folder: Path, task: str, size: int, row: tuple[str, int]) -> Batch:
    file, label = row
    pixels = read_image(folder / file, size=(size, size))
    return _normalised(np.array(pixels)), {task: torch.tensor(label)}


def _normalised(pixels: np.ndarray) -> Tensor:
    planes = torch.from_numpy(pixels).permute(2, 0, 1).contiguous()
    return planes.float().div_(255).sub_(MEAN).div_(STD)
