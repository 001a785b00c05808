"""Cityscapes with two tasks, as MTAN published it: classes and inverse depth of 3,475 street scenes."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from mtobal.data.files import require_folder
from mtobal.data.inspection import Check
from mtobal.data.multitask import FileDataset, MultiTaskData
from mtobal.data.scenes import DEPTH, SEGMENTATION, SceneFolder, image_size, open_splits, zoom_and_flip
from mtobal.data.splitting import hold_out
from mtobal.tasks import Depth, Segmentation

COUNTS = {"train": 2975, "val": 500}

Classes = Literal[7, 19]


def cityscapes(
    *,
    path: str,
    classes: Classes = 7,
    augment: bool = True,
    zoomed_depth: Literal["exact", "published"] = "exact",
    validation_share: float = 0.1,
    seed: int = 0,
) -> MultiTaskData:
    """Load Cityscapes; the tasks are `segmentation` and `depth`, which is inverse depth.

    Images have 128 x 256 pixels, or 256 x 512 in the larger version, with colours from 0 to 1. The published
    validation split, `val`, is the test split.

    Parameters
    ----------
    path : str
        A folder with `train/` and `val/`, each with `image/`, `depth/` and `label_7/` or `label_19/`; labels of
        7 classes may also lie in `label/`.
    classes : int
        7 or 19.
    augment : bool
        Whether training images are zoomed into and mirrored at random.
    zoomed_depth : str
        What a zoom by s does to inverse depth: "exact" multiplies it by s, for what is seen s times as large is
        s times as near; "published" divides it, as the code of published results does.
    validation_share : float
        How much of the training split to hold out for validation. With 0, as in most papers, training sees all
        of it and the test split is the validation split too: then nothing may be chosen by validation.
    seed : int
        Of that choice; it is not the seed of a training run.
    """
    folder = Path(path)
    label = _label_folder(folder, classes)
    scenes = open_splits(folder, label, classes, has_normals=False)
    train, test = (FileDataset(split.numbers(), split.read) for split in scenes)
    kept, held = hold_out(np.zeros(len(train)), validation_share, seed, "data set 'cityscapes'")
    transform = partial(zoom_and_flip, depth_exponent=1 if zoomed_depth == "exact" else -1)
    return MultiTaskData(
        train=train.subset(kept, transform if augment else None),
        validation=train.subset(held) if len(held) else test,
        test=test,
        tasks=(Segmentation(SEGMENTATION, num_classes=classes), Depth(DEPTH)),
        input_shape=(3, *scenes[0].size),
    )


def check_cityscapes(folder: Path) -> list[Check]:
    """Return a look at every file of every folder that is read."""
    size = image_size(folder / "train" / "image" / "0.npy")
    looks: list[Check] = []
    for split, count in COUNTS.items():
        scenes = SceneFolder(folder / split, _label_folder(folder, 7), 7, has_normals=False, size=size)
        looks += scenes.checks(count)
        if (folder / split / "label_19").exists():
            looks += SceneFolder(folder / split, "label_19", 19, has_normals=False, size=size).label_checks(count)
    return looks


def _label_folder(folder: Path, classes: Classes) -> str:
    require_folder(folder / "train", f"the folders image, depth and label_{classes}")
    plain = classes == 7 and not (folder / "train" / "label_7").exists()
    return "label" if plain and (folder / "train" / "label").exists() else f"label_{classes}"
