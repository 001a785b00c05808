"""From the published files of NYUv2 to a tree of `.npy` files."""

from __future__ import annotations

import json
import re
import shutil
import tarfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mtobal.data.files import Array, open_file, read_array, refusals_of
from mtobal.data.nyuv2.classes import RAW_TO_13, RAW_TO_40
from mtobal.data.nyuv2.original import (
    NORMALS_ARCHIVE,
    NORMALS_FOLDER,
    SIZE,
    Maps,
    OriginalNYUv2,
)
from mtobal.data.tracking import Track
from mtobal.errors import UsageError

MANIFEST = "prepared.json"
"""What a tree was made from. It is written first, so that another call does not mix two origins in one tree."""

_NAME_IN_ARCHIVE = re.compile(r"(?:[^/]+/)*(normals|masks)/([0-9]{4})\.png")
MAX_PNG_BYTES = 8_000_000
"""No image of 640 x 480 pixels takes more."""


def prepare_nyuv2(source: Path, target: Path, track: Track) -> str:
    """Convert the published files into `train/` and `val/` in the layout of MTAN, labelled with 13 and 40 classes.

    What is there already is kept, so that a call that was stopped goes on where it was. Every file is written
    under another name first and read back before it gets its own.

    Parameters
    ----------
    source : Path
        The folder of `nyu_depth_v2_labeled.mat` and `splits.mat`, and of `normals_gt.tgz` or the folder
        `normals_gt` if the published normals are wanted. Without them, normals are made from depth.
    target : Path
        Where the tree goes; it may be the same folder.
    track : Track
        Shows how far it is.

    Returns
    -------
    str
        What was done, in a sentence.
    """
    original = OriginalNYUv2.open(source)
    if original.normals_source == "depth" and (source / NORMALS_ARCHIVE).exists():
        unpack_normals(source / NORMALS_ARCHIVE, source / NORMALS_FOLDER, track)
    counts = {split: len(indices) for split, indices in original.splits.items()}
    manifest = {"normals": original.normals_source, "images": counts}
    with refusals_of(target, "written"):
        _claim(target, manifest)
        made = kept = 0
        images = [
            (target / split, number, index)
            for split, indices in original.splits.items()
            for number, index in enumerate(indices)
        ]
        for folder, number, index in track(images, "images", len(images)):
            if _is_complete(folder, number):
                kept += 1
            else:
                _write_maps(folder, number, original.maps(index))
                made += 1
    return f"{made} images converted and {kept} kept, with normals from {_origin(original)}, in {target}"


def unpack_normals(archive: Path, folder: Path, track: Track) -> None:
    """Unpack the published normals; the folder gets its name once it is whole.

    The places where files go are made up from their kinds and numbers, never from the names in the archive.
    """
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    with refusals_of(unfinished, "written"):
        for kind in ("normals", "masks"):
            (unfinished / kind).mkdir(parents=True)
    found = 0
    with open_file(archive) as file:
        try:
            with tarfile.open(fileobj=file, mode="r|gz") as members:
                for member in track(members, "normals", 2 * 1449):
                    outside = member.name.startswith("/") or ".." in Path(member.name).parts
                    if outside or member.size > MAX_PNG_BYTES:
                        raise UsageError(
                            f"{archive}: holds {member.name!r} of {member.size} bytes, which the published "
                            "archive does not."
                        )
                    match = _NAME_IN_ARCHIVE.fullmatch(member.name)
                    content = members.extractfile(member) if match and member.isreg() else None
                    if match and content:
                        picture = content.read()
                        with refusals_of(unfinished, "written"):
                            (unfinished / match[1] / f"{match[2]}.png").write_bytes(picture)
                        found += 1
        # A stream that is cut off or no archive ends in one of these.
        except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
            raise UsageError(f"{archive}: cannot be unpacked: {error}; it may be cut off.") from error
    if not found:
        raise UsageError(f"{archive}: expected files such as normals_gt/normals/0000.png, found none.")
    unfinished.rename(folder)


def require_finished(folder: Path, counts: Mapping[str, int]) -> None:
    """Raise if the tree was made by `prepare_nyuv2` and has not all images yet."""
    manifest = _manifest(folder)
    if manifest is not None and manifest.get("images") != counts:
        raise UsageError(
            f"{folder}: expected the images that {MANIFEST} tells, {manifest.get('images')}, found "
            f"{dict(counts)}; the preparation was stopped, call mtobal data prepare nyuv2 again."
        )


def _manifest(folder: Path) -> dict[str, Any] | None:
    path = folder / MANIFEST
    if not path.exists():
        return None
    with open_file(path) as file:
        try:
            found = json.loads(file.read())
        except (ValueError, RecursionError) as error:
            raise UsageError(
                f"{path}: expected JSON, found something else; prepare into another folder."
            ) from error
    if not isinstance(found, dict):
        raise UsageError(f"{path}: expected an object, found something else; prepare into another folder.")
    return found


def _claim(target: Path, manifest: Mapping[str, Any]) -> None:
    found = _manifest(target)
    if found is not None:
        if found != manifest:
            raise UsageError(
                f"{target / MANIFEST}: expected a tree made in the same way, {manifest}, found {found}; "
                "choose another --out, or remove train/, val/ and this file."
            )
        return
    for split in ("train", "val"):
        if (target / split).exists():
            raise UsageError(
                f"{target / split}: was not made by this command, for there is no {MANIFEST} beside it; "
                "choose another --out."
            )
    target.mkdir(parents=True, exist_ok=True)
    unfinished = (target / MANIFEST).with_suffix(".unfinished")
    unfinished.write_text(json.dumps(manifest), encoding="utf-8")
    unfinished.replace(target / MANIFEST)


_SHAPES: dict[str, tuple[int, ...]] = {
    "image": (*SIZE, 3),
    "label": SIZE,
    "label_40": SIZE,
    "depth": (*SIZE, 1),
    "normal": (*SIZE, 3),
}


def _is_complete(folder: Path, number: int) -> bool:
    try:
        for name, shape in _SHAPES.items():
            read_array(folder / name / f"{number}.npy", shape)
    except UsageError:  # missing, or cut off when the machine went down
        return False
    return True


def _write_maps(folder: Path, number: int, maps: Maps) -> None:
    arrays = {
        "image": maps.image,
        "label": RAW_TO_13[maps.raw_labels],
        "label_40": RAW_TO_40[maps.raw_labels],
        "depth": maps.depth,
        "normal": maps.normals,
    }
    for name, shape in _SHAPES.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        _write_verified(folder / name / f"{number}.npy", arrays[name], shape)


def _write_verified(path: Path, array: Array, shape: tuple[int, ...]) -> None:
    unfinished = path.with_suffix(".unfinished")
    with unfinished.open("wb") as file:
        np.save(file, array, allow_pickle=False)
    if not np.array_equal(read_array(unfinished, shape), array):
        raise UsageError(f"{path}: holds something else than was written; the disk may be at fault.")
    unfinished.replace(path)


def _origin(original: OriginalNYUv2) -> str:
    return "the published archive" if original.normals_source == "published" else "depth"
