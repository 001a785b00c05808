"""The published files of NYUv2: `nyu_depth_v2_labeled.mat`, `splits.mat` and the archive of normals."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from mtobal.data.files import Array, check_md5, open_file
from mtobal.data.inspection import Check
from mtobal.data.multitask import Batch
from mtobal.data.nyuv2.classes import NUM_RAW, RAW_TO_13, RAW_TO_40
from mtobal.data.nyuv2.matlab import read_numbers
from mtobal.data.nyuv2.normals import normals_from_depth, published_normals
from mtobal.data.scenes import DEPTH, NORMALS, SEGMENTATION, resize_image, resize_nearest
from mtobal.errors import UsageError

if TYPE_CHECKING:
    import h5py

LABELED = "nyu_depth_v2_labeled.mat"
SPLITS = "splits.mat"
NORMALS_FOLDER = "normals_gt"
NORMALS_ARCHIVE = "normals_gt.tgz"

LABELED_MD5 = "520609c519fba3ba5ac58c8fefcc3530"
SIZE = (288, 384)
"""Height and width to which every map is scaled."""

SplitName = Literal["train", "val"]
_INDEX_NAMES: dict[SplitName, str] = {"train": "trainNdxs", "val": "testNdxs"}

# h5py sees the dimensions of MATLAB in reverse: the image comes first, and columns come before rows.
_LAYOUT: dict[str, tuple[tuple[int, ...], str]] = {
    "images": ((3, 640, 480), "uint8"),
    "depths": ((640, 480), "float32"),
    "labels": ((640, 480), "uint16"),
}


@dataclass(frozen=True)
class Maps:
    """Everything known of one image, scaled to `SIZE`.

    Attributes
    ----------
    image : array of shape (H, W, 3)
        Colours from 0 to 1.
    raw_labels : array of shape (H, W)
        Classes from 1 to 894, 0 for none.
    depth : array of shape (H, W, 1)
        In metres.
    normals : array of shape (H, W, 3)
        Unit vectors, zero where unknown.
    """

    image: Array
    raw_labels: Array
    depth: Array
    normals: Array


@dataclass
class OriginalNYUv2:
    """The published files in one folder, read image by image.

    Attributes
    ----------
    folder : Path
        Where they lie.
    splits : dict
        The images of the official split, from 0.
    """

    folder: Path
    splits: dict[SplitName, list[int]]
    _file: h5py.File | None = field(default=None, repr=False)
    _process: int = 0

    @classmethod
    def open(cls, folder: Path) -> OriginalNYUv2:
        """Look at the layout of the files.

        Raises
        ------
        UsageError
            A file is missing, cut off, or not laid out as published.
        """
        original = cls(folder, _read_splits(folder / SPLITS))
        file = original._open()
        numbers = set()
        for key, (shape, dtype) in _LAYOUT.items():
            found = file.get(key)
            layout = f"{found.dtype} of shape {found.shape}" if hasattr(found, "shape") else "none"
            if not hasattr(found, "shape") or found.shape[1:] != shape or found.dtype != dtype:
                wanted = ", ".join(map(str, shape))
                raise UsageError(
                    f"{folder / LABELED}: expected {key} as {dtype} of shape (N, {wanted}), found {layout}."
                )
            numbers.add(len(found))
        last = max(max(indices) for indices in original.splits.values())
        if len(numbers) != 1 or last >= max(numbers):
            raise UsageError(
                f"{folder / LABELED}: expected images, depths and labels for all {last + 1} images of {SPLITS}, "
                f"found {' and '.join(map(str, sorted(numbers)))}."
            )
        return original

    @property
    def normals_source(self) -> Literal["published", "depth"]:
        """Where normals come from: the unpacked archive if it is there, or else the depth."""
        return "published" if (self.folder / NORMALS_FOLDER).is_dir() else "depth"

    def maps(self, index: int) -> Maps:
        """Read one image with its maps, by its number in the file."""
        file = self._open()
        try:
            columns = {key: np.asarray(file[key][index]) for key in _LAYOUT}
        except OSError as error:
            raise UsageError(f"{self.folder / LABELED}: image {index} cannot be read: {error}.") from error
        image, depth, labels = (np.swapaxes(columns[key], -1, -2) for key in ("images", "depths", "labels"))
        if labels.max() > NUM_RAW:
            raise UsageError(
                f"{self.folder / LABELED}: image {index}: expected labels up to {NUM_RAW}, found {labels.max()}."
            )
        depth = resize_nearest(depth, SIZE)
        if not (np.isfinite(depth).all() and depth.min() >= 0):
            raise UsageError(f"{self.folder / LABELED}: image {index}: expected depths from 0, found others.")
        if self.normals_source == "published":
            normals = resize_nearest(published_normals(self.folder / NORMALS_FOLDER, index), SIZE)
        else:
            normals = normals_from_depth(depth)
        return Maps(
            resize_image(np.ascontiguousarray(image.transpose(1, 2, 0)), SIZE),
            resize_nearest(labels, SIZE),
            depth[..., None],
            normals.astype(np.float32),
        )

    def sample(self, index: int, classes: Literal[13, 40]) -> Batch:
        """Read one image as a training sample."""
        maps = self.maps(index)
        table = RAW_TO_13 if classes == 13 else RAW_TO_40
        return _channels_first(maps.image), {
            SEGMENTATION: torch.from_numpy(table[maps.raw_labels].astype(np.int64)),
            DEPTH: _channels_first(maps.depth),
            NORMALS: _channels_first(maps.normals),
        }

    def checks(self) -> list[Check]:
        """Return a look at the checksum of the large file, and one at every image."""
        path = self.folder / LABELED
        looks: list[Check] = [(path, partial(_check_labeled, path))]
        for indices in self.splits.values():
            looks += [(path, partial(self.maps, index)) for index in indices]
        return looks

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None}

    def _open(self) -> h5py.File:
        # An open HDF5 file must not be shared with a worker process that was forked off.
        if self._file is None or self._process != os.getpid():
            self._file, self._process = open_hdf5(self.folder / LABELED), os.getpid()
        return self._file


def open_hdf5(path: Path) -> h5py.File:
    """Open an HDF5 file for reading."""
    try:
        import h5py
    except ModuleNotFoundError as error:
        raise UsageError(f'{path}: needs h5py, which is not installed: pip install "mtobal[bench]".') from error
    with open_file(path):  # what is no file is told in our own words
        pass
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise UsageError(
            f"{path}: expected an HDF5 file (MATLAB 7.3), found something else or a part of one: {error}."
        ) from error


def _read_splits(path: Path) -> dict[SplitName, list[int]]:
    arrays = read_numbers(path)
    splits: dict[SplitName, list[int]] = {}
    for split, name in _INDEX_NAMES.items():
        values = arrays.get(name, np.zeros(0))
        if not values.size or not ((values == values.round()) & (values >= 1) & (values < np.inf)).all():
            raise UsageError(f"{path}: expected {name}, the numbers of its images from 1, found something else.")
        splits[split] = [int(number) - 1 for number in values.ravel()]
    if set(splits["train"]) & set(splits["val"]):
        raise UsageError(f"{path}: expected splits without a common image, found some.")
    return splits


def _check_labeled(path: Path) -> None:
    with open_file(path) as file:
        check_md5(path, file, LABELED_MD5)


def _channels_first(values: Array) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(values.transpose(2, 0, 1)))
