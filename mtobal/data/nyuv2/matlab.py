"""Arrays of numbers in MATLAB 5 files. The reader of SciPy ends the process at some damaged ones."""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mtobal.data.files import Array, open_file
from mtobal.errors import UsageError

MAX_BYTES = 1 << 24
"""More than any file of indices has, packed or not."""

_HEADER_BYTES = 128
_MATRIX, _COMPRESSED = 14, 15
_TYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_NUMERIC_CLASSES = range(6, 16)


def read_numbers(path: Path) -> dict[str, Array]:
    """Read all arrays of numbers by their names, each with all its entries in one dimension.

    Raises
    ------
    UsageError
        No such file, of another format, cut off or damaged.
    """
    with open_file(path) as file:
        content = file.read(MAX_BYTES)
    try:
        order = {b"IM": "<", b"MI": ">"}[content[126:_HEADER_BYTES]]
        return dict(_arrays(content[_HEADER_BYTES:], order))
    except (KeyError, IndexError, ValueError, RecursionError, struct.error, zlib.error) as error:
        raise UsageError(f"{path}: expected a MATLAB 5 file, found something else or a part of one.") from error


def _arrays(content: bytes, order: str) -> Iterator[tuple[str, Array]]:
    for kind, payload in _elements(content, order):
        if kind == _COMPRESSED:
            unpacked = zlib.decompressobj()
            yield from _arrays(unpacked.decompress(payload, MAX_BYTES), order)
            if not unpacked.eof:
                raise ValueError("a packed array is cut off")
        elif kind == _MATRIX:
            flags, shape, name, *parts = _elements(payload, order)
            if struct.unpack_from(f"{order}I", flags[1])[0] & 0xFF in _NUMERIC_CLASSES:
                numbers = np.frombuffer(parts[0][1], dtype=order + _TYPES[parts[0][0]])
                if len(numbers) != math.prod(np.frombuffer(shape[1], dtype=f"{order}i4").tolist()):
                    raise ValueError("an array has another size than it says")
                yield name[1].decode("latin-1"), numbers


def _elements(content: bytes, order: str) -> Iterator[tuple[int, bytes]]:
    """Go through the elements of a file or of an array: the type of each and its content."""
    at = 0
    while at < len(content):
        kind, size = struct.unpack_from(f"{order}II", content, at)
        start = at + 8
        if kind >> 16:  # a small one has its content where others have their size
            size, kind, start = kind >> 16, kind & 0xFFFF, at + 4
        if start + size > len(content):
            raise ValueError("an element is cut off")
        yield kind, content[start : start + size]
        # They begin at multiples of eight bytes, but for those behind packed ones.
        at = start + size + (0 if kind == _COMPRESSED else -(start + size) % 8)
