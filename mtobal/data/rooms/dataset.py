"""Furnished rooms as a data set, in the tensor format of NYUv2."""

from __future__ import annotations

import multiprocessing
import os
import sys
import warnings
from dataclasses import dataclass
from random import Random

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mtobal.data.multitask import InMemoryDataset, MultiTaskData
from mtobal.data.rooms.furnishing import draw_scene
from mtobal.data.rooms.raycasting import Hits, cast
from mtobal.data.rooms.scene import CEILING, CLASSES, FLOOR, WALL, Array, Scene
from mtobal.data.rooms.shading import shade
from mtobal.data.scenes import DEPTH, NORMALS, SEGMENTATION, zoom_and_flip
from mtobal.errors import UsageError
from mtobal.tasks import Depth, Normals, Segmentation

PORTION = 16
"""Rooms that one process renders at a time."""


def rooms(
    *,
    train_scenes: int = 1000,
    validation_scenes: int = 200,
    test_scenes: int = 400,
    height: int = 72,
    width: int = 96,
    augment: bool = True,
    seed: int = 0,
) -> MultiTaskData:
    """Render furnished rooms; the tasks are `segmentation`, `depth` and `normals`, as in NYUv2.

    Every room is drawn at random and seen once. Labels, depths and normals are exact: they come from the geometry,
    one ray through the centre of every pixel. Images have textures, lamps, a wrong white balance and sensor noise.
    Some things are of no class, and panes of windows have neither depth nor normal, for the depth sensor looks
    through them.

    Parameters
    ----------
    train_scenes, validation_scenes, test_scenes : int
        How many rooms to render for each split.
    height, width : int
        Of the images.
    augment : bool
        Whether training images are zoomed into and mirrored at random.
    seed : int
        Seed of the rooms; it is not the seed of a training run, so that all runs see the same data.

    Examples
    --------
    >>> data = rooms(train_scenes=2, validation_scenes=1, test_scenes=1)
    >>> inputs, targets = data.train[0]
    >>> {task: tuple(target.shape) for task, target in targets.items()}
    {'segmentation': (72, 96), 'depth': (1, 72, 96), 'normals': (3, 72, 96)}
    """
    counts = {"train_scenes": train_scenes, "validation_scenes": validation_scenes, "test_scenes": test_scenes}
    for name, number in {**counts, "height": height, "width": width}.items():
        if number < 1:
            raise UsageError(f"data set 'rooms': {name} should be at least 1, not {number}.")
    if seed < 0:
        raise UsageError(f"data set 'rooms': seed should be 0 or more, not {seed}.")

    train, validation, test = (
        _render(seed, split, number, height, width) for split, number in enumerate(counts.values())
    )
    train.augment = zoom_and_flip if augment else None
    return MultiTaskData(
        train=train,
        validation=validation,
        test=test,
        tasks=(Segmentation(SEGMENTATION, num_classes=len(CLASSES)), Depth(DEPTH), Normals(NORMALS)),
        input_shape=(3, height, width),
    )


@dataclass(frozen=True)
class _Renderings(Dataset[tuple[int, tuple[Tensor, ...]]]):
    """The rooms of a split in portions, each with the number of its first."""

    seed: int
    split: int
    number: int
    height: int
    width: int

    def __len__(self) -> int:
        return -(-self.number // PORTION)

    def __getitem__(self, portion: int) -> tuple[int, tuple[Tensor, ...]]:
        first = portion * PORTION
        rooms = [self._room(index) for index in range(first, min(first + PORTION, self.number))]
        return first, tuple(torch.from_numpy(np.stack(arrays)) for arrays in zip(*rooms, strict=True))

    def _room(self, index: int) -> tuple[Array, Array, Array, Array]:
        # A room depends on nothing but these three numbers, however many others are rendered, and where.
        scene = draw_scene(Random(f"{self.seed}/{self.split}/{index}"))
        hits = cast(scene, self.height, self.width)
        image = shade(scene, hits, np.random.default_rng([self.seed, self.split, index]))
        labels, depth, normals = annotate(scene, hits)
        return image.astype(np.float32), labels, depth[None].astype(np.float32), normals.astype(np.float32)


def _render(seed: int, split: int, number: int, height: int, width: int) -> InMemoryDataset:
    images, depths, normals = (torch.empty(number, channels, height, width) for channels in (3, 1, 3))
    labels = torch.empty(number, height, width, dtype=torch.int64)
    renderings = _Renderings(seed, split, number, height, width)
    with warnings.catch_warnings():
        # Threads of the parent are no danger: the children compute with NumPy alone.
        warnings.filterwarnings("ignore", message=".* use of fork\\(\\) may lead to deadlocks")
        apart = torch.Generator()  # a loader draws from it, and the global one shall stay as it is
        workers = _workers(len(renderings))
        for first, arrays in DataLoader(renderings, batch_size=None, num_workers=workers, generator=apart):
            for whole, part in zip((images, labels, depths, normals), arrays, strict=True):
                whole[first : first + len(part)] = part
    return InMemoryDataset(images, {SEGMENTATION: labels, DEPTH: depths, NORMALS: normals})


def _workers(portions: int) -> int:
    """Return how many processes pay; elsewhere than on Linux, a new one costs more than it renders."""
    if sys.platform != "linux" or multiprocessing.current_process().daemon:  # which may have no children
        return 0
    cores = len(os.sched_getaffinity(0))
    return min(cores, portions) if cores > 1 and portions > 1 else 0


def annotate(scene: Scene, hits: Hits) -> tuple[Array, Array, Array]:
    """Return classes (H, W), depths (H, W) and normals (3, H, W) in camera coordinates.

    What the depth sensor does not see has depth 0 and a normal of zeros.
    """
    labels = np.array([FLOOR, CEILING, WALL, *(solid.label for solid in scene.solids)])[hits.surface]
    seen = np.array([True, True, True, *(solid.material.opaque for solid in scene.solids)])[hits.surface]
    normals = np.tensordot(scene.camera.rotation().T.astype(hits.normals.dtype), hits.normals, axes=1)
    return labels, np.where(seen, hits.depth, 0), np.where(seen, normals, 0)
