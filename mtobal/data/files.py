"""Files that may be missing, cut off or not what their name says: each gives one line that names it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tokenize import TokenError
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from mtobal.errors import UsageError

Array = NDArray[Any]

_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


@contextmanager
def open_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file for reading.

    Raises
    ------
    UsageError
        There is no file, or something else is there (a pipe, say, from which a reader would wait for ever), or the
        disk refuses.
    """
    with refusals_of(path):
        if not path.is_file():
            found = "something else" if path.exists() else "nothing"
            raise UsageError(f"{path}: expected a file, found {found} there; get the data set again.")
        with path.open("rb") as file:
            yield file


@contextmanager
def refusals_of(path: Path, to_be: Literal["read", "written"] = "read") -> Iterator[None]:
    """Tell in one line what the disk refuses: to look into a folder of another user, or to hold any more."""
    try:
        yield
    except OSError as error:
        raise UsageError(f"{error.filename or path}: cannot be {to_be}: {error.strerror or error}.") from error


def read_array(path: Path, shape: tuple[int | None, ...]) -> Array:
    """Read a `.npy` file of numbers.

    Parameters
    ----------
    path : Path
        The file.
    shape : tuple of int or None
        The shape that is expected; None fits any length.

    Raises
    ------
    UsageError
        No such file, not of this format, not numbers, another shape, or cut off.
    """
    with open_file(path) as file:
        try:
            version = np.lib.format.read_magic(file)
            if version not in _HEADERS:
                raise ValueError(f"version {version} of the format is not known here")
            found, fortran, dtype = _HEADERS[version](file)
        except (ValueError, TypeError, SyntaxError, TokenError, EOFError, RecursionError) as error:
            reason = " ".join(str(error).split())
            raise UsageError(f"{path}: expected a NumPy array (.npy), found something else: {reason}.") from error
        if dtype.kind not in "biuf":
            raise UsageError(f"{path}: expected an array of numbers, found {dtype}.")
        fits = len(found) == len(shape) and all(
            # A header is free to say True or -1.
            type(have) is int and have > 0 and want in (None, have)
            for want, have in zip(shape, found, strict=True)
        )
        if not fits:
            wanted = ", ".join("any" if length is None else str(length) for length in shape)
            raise UsageError(f"{path}: expected shape ({wanted}), found {tuple(found)}.")
        count = math.prod(found)
        # The size first: a header may promise more than memory holds.
        missing = count * dtype.itemsize - (path.stat().st_size - file.tell())
        if missing > 0:
            raise UsageError(f"{path}: is cut off, {missing} bytes are missing; get it again.")
        array = np.fromfile(file, dtype=dtype, count=count)
    return array.reshape(found[::-1]).T if fortran else array.reshape(found)


def check_md5(path: Path, file: BinaryIO, expected: str, name: str = "") -> None:
    """Read a file to its end and compare its checksum; `name` is that of a file inside `path`."""
    digest = hashlib.md5(usedforsecurity=False)
    for block in iter(lambda: file.read(1 << 20), b""):
        digest.update(block)
    if digest.hexdigest() != expected:
        where = f"{path}: {name}" if name else str(path)
        raise UsageError(
            f"{where}: expected the published file with MD5 {expected}, found {digest.hexdigest()}; "
            "it is cut off or changed, get it again."
        )


def require_folder(path: Path, contents: str) -> None:
    """Raise unless `path` is a folder."""
    with refusals_of(path):
        if not path.is_dir():
            found = "something else" if path.exists() else "nothing"
            raise UsageError(f"{path}: expected a folder with {contents}, found {found} there.")
