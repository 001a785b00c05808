"""Files of tensors, as torch saves them, read without trusting them."""

from __future__ import annotations

import pickle
import struct
from typing import Any, BinaryIO

import torch

from mtobal.errors import UsageError

# A damaged file may fail in each of these ways.
_BROKEN = (
    pickle.UnpicklingError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
)


def load_tensors(file: BinaryIO, where: str) -> Any:
    """Read tensors, in lists and dictionaries, on the CPU; the file cannot build or call anything else.

    Parameters
    ----------
    file : binary file
        What `torch.save` wrote.
    where : str
        Its name, for the error.

    Raises
    ------
    UsageError
        It is cut off, damaged, or asks for anything else.
    """
    try:
        return torch.load(file, weights_only=True, map_location="cpu")
    except _BROKEN as error:
        reason = str(error).strip().partition("\n")[0][:200]
        raise UsageError(f"{where}: expected a file of tensors, found another: {reason}.") from error
