"""Pickled arrays of published data sets, read without trusting them."""

from __future__ import annotations

import math
import pickle
import re
import struct
from collections.abc import Callable
from typing import Any, BinaryIO, ClassVar

import numpy as np

from mtobal.data.files import Array
from mtobal.errors import UsageError

_NUMBERS = re.compile(r"[<>|=]?[biuf][1248]")


class _PickledDtype:
    """What a pickle says of the type of an array; only plain numbers are understood."""

    def __init__(self, code: object = None, *_: object) -> None:
        self.code = code
        self.order = "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = state[1]

    def resolve(self) -> np.dtype[Any]:
        """Return the type."""
        # Booleans and bytes have an order of "|", which says that order does not matter.
        order = "=" if self.order == "|" else self.order
        text = f"{order}{self.code}".replace("=b1", "|b1")
        if not _NUMBERS.fullmatch(text):
            raise pickle.UnpicklingError(f"an array of {text!r}, which are not numbers")
        return np.dtype(text)


class _PickledArray:
    """What a pickle says of an array; it becomes one only after its parts are found to fit."""

    def __init__(self, *_: object) -> None:
        self.state: tuple[Any, ...] = ()

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.state = state

    def resolve(self) -> Array:
        """Return the array."""
        _, shape, dtype, fortran, content = self.state
        return _build(shape, dtype, "F" if fortran else "C", content)


class _PickledBuffer:
    """An array in the form of newer pickles: its content first."""

    def __init__(self, content: object, dtype: object, shape: object, order: object) -> None:
        self.parts = (shape, dtype, order, content)

    def __setstate__(self, state: object) -> None:
        raise pickle.UnpicklingError("an array that is changed after it was made")

    def resolve(self) -> Array:
        """Return the array."""
        return _build(*self.parts)


def _build(shape: Any, dtype: Any, order: Any, content: Any) -> Array:
    if isinstance(content, str):  # of Python 2
        content = content.encode("latin-1")
    if (
        not isinstance(dtype, _PickledDtype)
        or not isinstance(content, bytes | bytearray)
        or order not in ("C", "F")
    ):
        raise pickle.UnpicklingError("an array without its parts")
    if not isinstance(shape, tuple) or not all(isinstance(length, int) and length >= 0 for length in shape):
        raise pickle.UnpicklingError(f"an array of shape {shape!r}")
    plain = dtype.resolve()
    if math.prod(shape) * plain.itemsize != len(content):
        raise pickle.UnpicklingError(f"{len(content)} bytes for an array of shape {shape} and type {plain}")
    # Of bytes that may be changed, or else the array could not be.
    return np.frombuffer(bytearray(content), dtype=plain).reshape(shape, order=order)


_GLOBALS: dict[tuple[str, str], type] = {("numpy", "dtype"): _PickledDtype, ("numpy", "ndarray"): _PickledArray}
for _core in ("numpy.core", "numpy._core"):
    _GLOBALS[_core + ".multiarray", "_reconstruct"] = _PickledArray
    _GLOBALS[_core + ".numeric", "_frombuffer"] = _PickledBuffer


class _Stream:
    """A file that does not promise more bytes than it has left."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self._left = size

    def read(self, number: int) -> bytes:
        if number > self._left:
            raise EOFError("it ends in the middle")
        self._left -= number
        return self._file.read(number)

    def readline(self) -> bytes:
        line = self._file.readline(1 << 16)
        self._left -= len(line)
        return line


# The one in Python, because the one in C reserves memory for as many objects as the file claims.
class _Reader(pickle._Unpickler):
    read: Callable[[int], bytes]
    append: Callable[[object], None]

    def load_bytearray8(self) -> None:
        # As for bytes: what is inherited reserves memory for as many of them as the file claims.
        (length,) = struct.unpack("<Q", self.read(8))
        self.append(bytearray(self.read(length)))

    dispatch: ClassVar[dict[int, Any]] = {
        **pickle._Unpickler.dispatch,
        pickle.BYTEARRAY8[0]: load_bytearray8,
    }

    def find_class(self, module: str, name: str) -> type:
        if (module, name) not in _GLOBALS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no array needs")
        return _GLOBALS[module, name]


def load_pickle(file: BinaryIO, size: int, where: str) -> Any:
    """Read a pickle of numbers, texts, lists, dictionaries and arrays; it cannot build or call anything else.

    Parameters
    ----------
    file : binary file
        Where the pickle starts.
    size : int
        How many bytes it has at most.
    where : str
        Its name, for errors.

    Returns
    -------
    object
        With arrays where the pickle itself, or a container that it is, holds them.

    Raises
    ------
    UsageError
        It is cut off, damaged, or asks for anything else.
    """
    try:
        found = _Reader(_Stream(file, size), encoding="latin-1").load()
        if isinstance(found, dict):
            return {key: _resolved(value) for key, value in found.items()}
        if isinstance(found, tuple | list):
            return type(found)(_resolved(value) for value in found)
        return _resolved(found)
    # A damaged pickle may fail in each of these ways.
    except (
        pickle.UnpicklingError,
        ArithmeticError,
        AttributeError,
        EOFError,
        LookupError,
        MemoryError,
        NotImplementedError,
        RecursionError,
        TypeError,
        ValueError,
        struct.error,
    ) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UsageError(f"{where}: expected a pickle of arrays and lists, found another: {reason}.") from error


def _resolved(value: Any) -> Any:
    return value.resolve() if isinstance(value, _PickledArray | _PickledBuffer) else value
