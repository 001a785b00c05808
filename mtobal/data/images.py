"""Image files (PNG, JPEG), by Pillow."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

from mtobal.data.files import Array, open_file
from mtobal.errors import UsageError

MAX_PIXELS = 64_000_000
"""No image of a known data set comes near this; a small file that unpacks to more would fill the memory."""


def read_image(path: Path, mode: str = "RGB", size: tuple[int, int] | None = None) -> Array:
    """Read an image file.

    Parameters
    ----------
    path : Path
        The file.
    mode : str
        "RGB" for colours, "L" for shades of grey.
    size : tuple of int, optional
        Height and width to resize to, by linear interpolation over what each pixel covers.

    Returns
    -------
    array of uint8, shape (H, W, 3) or (H, W)

    Raises
    ------
    UsageError
        No such file, not an image, cut off, or far too large; or Pillow is not installed.
    """
    try:
        from PIL import Image
    except ModuleNotFoundError as error:
        raise UsageError(
            f'{path}: image files need Pillow, which is not installed: pip install "mtobal[images]".'
        ) from error
    with open_file(path) as file:
        try:
            with Image.open(file) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise ValueError(f"{image.width} by {image.height} pixels are more than any known image has")
                # JPEG can be decoded at a fraction of its size, which is several times as fast.
                image.draft(mode, None if size is None else (2 * size[1], 2 * size[0]))
                converted = image.convert(mode)
                if size is not None:
                    converted = converted.resize((size[1], size[0]), Image.Resampling.BILINEAR)
                return np.asarray(converted)
        # Pillow answers broken files with each of these.
        except (OSError, ValueError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError) as error:
            reason = " ".join(str(error).replace(repr(file), "it").split())
            raise UsageError(f"{path}: expected an image, found something else: {reason}.") from error
