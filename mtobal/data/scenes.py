"""Images with a label, a depth and a normal for every pixel: their augmentation, and their `.npy` files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from mtobal.data.files import Array, read_array, require_folder
from mtobal.data.inspection import Check, expect_count
from mtobal.data.multitask import Batch
from mtobal.errors import UsageError

SEGMENTATION, DEPTH, NORMALS = "segmentation", "depth", "normals"
"""The tasks; those of a data set are the keys of its targets."""

ZOOMS = (1.0, 1.2, 1.5)


def zoom_and_flip(batch: Batch, generator: Generator, depth_exponent: int = -1) -> Batch:
    """Zoom into a random part of every image, by 1, 1.2 or 1.5, and mirror half of them.

    Images and normals are interpolated, labels and depths keep the values they have. Under a zoom by s the camera
    is s times nearer. Mirrored normals change the sign of x. Normals have unit length again at the end; where
    there are none, there are none after it.

    Parameters
    ----------
    batch : Batch
        Images (N, 3, H, W), and targets by the names of the tasks.
    generator : Generator
        Source of the randomness.
    depth_exponent : int
        Depths are multiplied by s to this power: -1 for distances, 1 for inverse distances.
    """
    images, targets = batch
    assert isinstance(images, Tensor)
    images, targets = images.clone(), {task: target.clone() for task, target in targets.items()}
    for i in range(len(images)):
        zoom = ZOOMS[_draw(len(ZOOMS), generator)]
        _zoom(images, targets, i, zoom, depth_exponent, generator)
        if _draw(2, generator):
            images[i] = images[i].flip(-1)
            for task, target in targets.items():
                target[i] = target[i].flip(-1)
                if task == NORMALS:
                    target[i, 0].neg_()
    return images, targets


def _zoom(
    images: Tensor, targets: dict[str, Tensor], i: int, zoom: float, depth_exponent: int, generator: Generator
) -> None:
    height, width = images.shape[-2:]
    size = int(height / zoom), int(width / zoom)
    top, left = _draw(height - size[0] + 1, generator), _draw(width - size[1] + 1, generator)
    if zoom == 1:
        return

    rows = top + torch.arange(height) * size[0] // height
    columns = left + torch.arange(width) * size[1] // width

    def interpolated(values: Tensor) -> Tensor:
        part = values[None, :, top : top + size[0], left : left + size[1]]
        return F.interpolate(part, (height, width), mode="bilinear", align_corners=True)[0]

    def nearest(values: Tensor) -> Tensor:
        return values.index_select(-2, rows).index_select(-1, columns)

    images[i] = interpolated(images[i])
    if SEGMENTATION in targets:
        targets[SEGMENTATION][i] = nearest(targets[SEGMENTATION][i])
    if DEPTH in targets:
        targets[DEPTH][i] = nearest(targets[DEPTH][i]) * zoom**depth_exponent
    if NORMALS in targets:
        normals = interpolated(targets[NORMALS][i])
        # Written out, as the norm of torch over so short a dimension takes ten times as long.
        length = (normals[0] ** 2 + normals[1] ** 2 + normals[2] ** 2).sqrt_().clamp_(min=1e-12)
        targets[NORMALS][i] = normals / length


def _draw(number: int, generator: Generator) -> int:
    return int(torch.randint(number, (), generator=generator))


@dataclass(frozen=True)
class SceneFolder:
    """One split of a data set in the layout of MTAN: a folder for each kind of map, holding 0.npy, 1.npy, ...

    Attributes
    ----------
    path : Path
        The folder of the split, with `image/` in it.
    label : str
        Name of the folder of labels.
    num_classes : int
        Labels are 0 to one less, and -1 for none.
    has_normals : bool
        Whether there is a folder of normals.
    size : tuple of int
        Height and width of every map.
    """

    path: Path
    label: str
    num_classes: int
    has_normals: bool
    size: tuple[int, int]

    @classmethod
    def open(cls, path: Path, label: str, num_classes: int, *, has_normals: bool) -> SceneFolder:
        """Return the split with the size of its first image.

        Raises
        ------
        UsageError
            A folder is missing, holds no image, or lacks a file that another folder has.
        """
        folders = ("image", label, "depth", *(("normal",) if has_normals else ()))
        require_folder(path, f"the folders {', '.join(folders)}")
        numbers = {folder: set(_numbers(path / folder)) for folder in folders}
        if not numbers["image"]:
            raise UsageError(f"{path / 'image'}: expected images 0.npy, 1.npy, ..., found none.")
        everything = set.union(*numbers.values())
        for folder, found in numbers.items():
            if missing := sorted(everything - found):
                more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
                raise UsageError(
                    f"{path / folder / f'{missing[0]}.npy'}: is missing{more}, while other maps of it are there."
                )
        size = image_size(path / "image" / f"{min(everything)}.npy")
        return cls(path, label, num_classes, has_normals, size)

    def numbers(self) -> list[int]:
        """Return the numbers of all images."""
        return _numbers(self.path / "image")

    def read(self, number: int) -> Batch:
        """Read one image with its maps."""
        targets = {SEGMENTATION: self._labels(number), DEPTH: self._planes("depth", number, 1)}
        if self.has_normals:
            targets[NORMALS] = self._planes("normal", number, 3)
        return self._planes("image", number, 3), targets

    def checks(self, expected: int) -> list[Check]:
        """Return a look at every file of every folder, of which there should be `expected`."""
        looks = [
            *self._folder_checks("image", self._check_image, expected),
            *self.label_checks(expected),
            *self._folder_checks("depth", self._check_depth, expected),
        ]
        return looks + self._folder_checks("normal", self._check_normals, expected) * self.has_normals

    def label_checks(self, expected: int) -> list[Check]:
        """Return a look at every label file."""
        return self._folder_checks(self.label, self._labels, expected)

    def _folder_checks(self, name: str, look: Callable[[int], object], expected: int) -> list[Check]:
        folder = self.path / name
        numbers = _numbers(folder) if folder.is_dir() else []
        return [
            (folder, partial(_check_strangers, folder)),
            (folder, partial(_check_missing, folder, numbers, expected)),
            *((self._file(name, number), partial(look, number)) for number in numbers),
        ]

    def _file(self, folder: str, number: int) -> Path:
        return self.path / folder / f"{number}.npy"

    def _planes(self, folder: str, number: int, channels: int) -> Tensor:
        values = read_array(self._file(folder, number), (*self.size, channels))
        # A view: the batch, which copies the planes anyway, puts them in order.
        return torch.from_numpy(values.astype(np.float32, copy=False)).permute(2, 0, 1)

    def _labels(self, number: int) -> Tensor:
        path = self._file(self.label, number)
        values = read_array(path, self.size)
        # A label out of range would end a training on a GPU without a word of where it came from.
        if not (values.min() >= -1 and values.max() < self.num_classes):
            raise UsageError(
                f"{path}: expected labels from -1 to {self.num_classes - 1}, "
                f"found {values.min():g} to {values.max():g}."
            )
        labels = values.astype(np.int64)
        if not np.array_equal(labels, values):
            raise UsageError(f"{path}: expected labels that are whole numbers, found others.")
        return torch.from_numpy(labels)

    def _check_image(self, number: int) -> None:
        values = self._planes("image", number, 3)
        if not (values.min() >= 0 and values.max() <= 1):
            raise UsageError(
                f"{self._file('image', number)}: expected colours from 0 to 1, "
                f"found {float(values.min()):g} to {float(values.max()):g}."
            )

    def _check_depth(self, number: int) -> None:
        values = self._planes("depth", number, 1)
        path = self._file("depth", number)
        if not (values.min() >= 0 and values.isfinite().all()):
            raise UsageError(f"{path}: expected depths from 0, found a negative one or one that is no number.")
        if not (values > 0).any():
            raise UsageError(f"{path}: expected depths above 0, found none: every pixel counts as unknown.")

    def _check_normals(self, number: int) -> None:
        norms = self._planes("normal", number, 3).norm(dim=0)
        known = norms[norms != 0]
        if not ((known - 1).abs() < 0.01).all():
            worst = float(known[(known - 1).abs().argmax()])
            raise UsageError(
                f"{self._file('normal', number)}: expected normals of length 1, or 0 where unknown, "
                f"found one of length {worst:g}."
            )


def open_splits(
    folder: Path, label: str, num_classes: int, *, has_normals: bool
) -> tuple[SceneFolder, SceneFolder]:
    """Return `train/` and `val/`, whose images have one size."""
    train, val = (
        SceneFolder.open(folder / split, label, num_classes, has_normals=has_normals) for split in ("train", "val")
    )
    if train.size != val.size:
        raise UsageError(
            f"{folder}: expected images of one size, found {train.size} in train and {val.size} in val."
        )
    return train, val


def image_size(path: Path) -> tuple[int, int]:
    """Return height and width of an image."""
    height, width, _ = read_array(path, (None, None, 3)).shape
    return height, width


def _numbers(folder: Path) -> list[int]:
    require_folder(folder, "files 0.npy, 1.npy, ...")
    # Not by glob, to which a folder that may not be read is an empty one.
    files = (path for path in folder.iterdir() if path.suffix == ".npy")
    return sorted(int(path.stem) for path in files if _is_number(path.stem))


def _is_number(stem: str) -> bool:
    return stem.isascii() and stem.isdigit() and stem == str(int(stem))


def _check_strangers(folder: Path) -> None:
    require_folder(folder, "files 0.npy, 1.npy, ...")
    names = (path.name for path in folder.iterdir() if path.suffix != ".npy" or not _is_number(path.stem))
    if strangers := sorted(names):
        more = f" ({len(strangers)} in all)" if len(strangers) > 1 else ""
        raise UsageError(f"{folder / strangers[0]}: expected files 0.npy, 1.npy, ... alone in this folder{more}.")


def _check_missing(folder: Path, numbers: Sequence[int], expected: int) -> None:
    if missing := sorted(set(range(expected)) - set(numbers)):
        more = f", and {len(missing) - 1} more are" if len(missing) > 1 else ""
        raise UsageError(f"{folder / f'{missing[0]}.npy'}: is missing{more}; expected {expected} files.")
    expect_count(str(folder), len(numbers), expected)


def resize_image(image: Array, size: tuple[int, int]) -> Array:
    """Return an 8-bit image (H, W, 3) in another size, as floats from 0 to 1, each the mean of what it covers."""
    values = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
    resized = F.interpolate(values, size, mode="bilinear", antialias=True)[0]
    return np.ascontiguousarray(resized.clamp(0, 1).permute(1, 2, 0).numpy())


def resize_nearest(values: Array, size: tuple[int, int]) -> Array:
    """Return a map (H, W) or (H, W, C) in another size, every pixel taken from the nearest one."""
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(np.int64)
        for new, old in zip(size, values.shape[:2], strict=True)
    )
    resized: Array = values[rows[:, None], columns]
    return resized
