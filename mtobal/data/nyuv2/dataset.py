"""NYUv2 as a data set, from either form."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from mtobal.data.files import require_folder
from mtobal.data.inspection import Check
from mtobal.data.multitask import FileDataset, MultiTaskData
from mtobal.data.nyuv2.original import LABELED, SIZE, OriginalNYUv2, SplitName
from mtobal.data.nyuv2.prepare import require_finished
from mtobal.data.scenes import DEPTH, NORMALS, SEGMENTATION, SceneFolder, open_splits, zoom_and_flip
from mtobal.data.splitting import hold_out
from mtobal.errors import UsageError
from mtobal.tasks import Depth, Normals, Segmentation

Classes = Literal[13, 40]

LABEL_FOLDERS: dict[Classes, str] = {13: "label", 40: "label_40"}
COUNTS: dict[SplitName, int] = {"train": 795, "val": 654}


def nyuv2(
    *,
    path: str,
    classes: Classes = 13,
    augment: bool = True,
    validation_share: float = 0.1,
    seed: int = 0,
) -> MultiTaskData:
    """Load NYUv2; the tasks are `segmentation`, `depth` and `normals`.

    Images have 288 x 384 pixels with colours from 0 to 1. The test split is the official one, which the prepared
    tree calls `val`.

    Parameters
    ----------
    path : str
        A folder with `train/` and `val/` in the layout of MTAN, or with the published `nyu_depth_v2_labeled.mat`
        and `splits.mat`. Of both, the former is read, which is much faster.
    classes : int
        13 or 40.
    augment : bool
        Whether training images are zoomed into and mirrored at random.
    validation_share : float
        How much of the training split to hold out for validation. With 0, as in most papers, training sees all
        of it and the test split is the validation split too: then nothing may be chosen by validation.
    seed : int
        Of that choice; it is not the seed of a training run.
    """
    folder = Path(path)
    if _is_prepared(folder):
        scenes = open_splits(folder, LABEL_FOLDERS[classes], classes, has_normals=True)
        size = scenes[0].size
        train, test = (FileDataset(split.numbers(), split.read) for split in scenes)
        require_finished(folder, {"train": len(train), "val": len(test)})
    else:
        original = OriginalNYUv2.open(folder)
        size = SIZE
        read = partial(original.sample, classes=classes)
        train, test = (FileDataset(original.splits[split], read) for split in COUNTS)
    kept, held = hold_out(np.zeros(len(train)), validation_share, seed, "data set 'nyuv2'")
    return MultiTaskData(
        train=train.subset(kept, zoom_and_flip if augment else None),
        validation=train.subset(held) if len(held) else test,
        test=test,
        tasks=(Segmentation(SEGMENTATION, num_classes=classes), Depth(DEPTH), Normals(NORMALS)),
        input_shape=(3, *size),
    )


def check_nyuv2(folder: Path) -> list[Check]:
    """Return a look at every file of a prepared tree, or at every image of the published file."""
    if not _is_prepared(folder):
        return OriginalNYUv2.open(folder).checks()
    looks: list[Check] = []
    for split, count in COUNTS.items():
        for classes, label in LABEL_FOLDERS.items():
            scenes = SceneFolder(folder / split, label, classes, has_normals=True, size=SIZE)
            if classes == 13:
                looks += scenes.checks(count)
            elif (folder / split / label).exists():
                looks += scenes.label_checks(count)
    return looks


def _is_prepared(folder: Path) -> bool:
    require_folder(folder, f"train/ and val/, or with {LABELED}")
    if (folder / "train").is_dir():
        return True
    if (folder / LABELED).exists():
        return False
    raise UsageError(f"{folder}: expected train/ and val/, or {LABELED}, found neither.")
