"""Surface normals of NYUv2: the published ones, or from depth."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mtobal.data.files import Array
from mtobal.data.images import read_image
from mtobal.errors import UsageError

FOCAL = (518.8579, 519.4696)
CENTRE = (325.5824, 253.7362)
"""Of the colour camera, in pixels of the full image (640 x 480), horizontally and vertically."""

FULL_SIZE = (480, 640)
RADIUS = 3
MAX_STEP = 0.05
"""By what share the inverse depth of a neighbour may differ from that of the pixel to lie on the same plane."""


def published_normals(folder: Path, index: int) -> Array:
    """Read the normals of one image from the published archive, unpacked.

    Returns
    -------
    array of shape (480, 640, 3)
        Unit normals, zero where the archive masks them.
    """
    pixels = read_image(folder / "normals" / f"{index:04d}.png")
    mask = read_image(folder / "masks" / f"{index:04d}.png", mode="L")
    if pixels.shape[:2] != FULL_SIZE or mask.shape != FULL_SIZE:
        raise UsageError(
            f"{folder / 'normals' / f'{index:04d}.png'}: expected normals and mask of 640 x 480 pixels, "
            f"found {pixels.shape[1]} x {pixels.shape[0]} and {mask.shape[1]} x {mask.shape[0]}."
        )
    vectors = pixels.astype(np.float32) / 127.5 - 1
    lengths = np.linalg.norm(vectors, axis=2, keepdims=True)
    return np.where((mask[..., None] > 0) & (lengths > 0.5), vectors / np.maximum(lengths, 1e-6), 0)


def normals_from_depth(depth: Array) -> Array:
    """Fit a plane around every pixel.

    A plane is linear in the inverse depth: 1/z = a u + b v + c, where u and v are the directions of the ray, and
    (a, b, c) points along its normal. So each fit is a least-squares line in two variables over a window of 7 x 7
    pixels, less the neighbours whose depth steps away.

    Parameters
    ----------
    depth : array of shape (H, W)
        The depth of the full field of view, in metres, 0 where unknown.

    Returns
    -------
    array of shape (H, W, 3)
        Unit normals that look at the camera, x to the right, y up and z towards the camera; zero where unknown.
    """
    height, width = depth.shape
    step_u = FULL_SIZE[1] / width / FOCAL[0]
    step_v = FULL_SIZE[0] / height / FOCAL[1]
    known = depth > 0
    inverse = np.divide(1.0, depth, out=np.zeros(depth.shape, dtype=np.float32), where=known)
    padded = np.pad(inverse, RADIUS)

    # The sums of the normal equations, all relative to the pixel in the middle of its window, so that float32 is
    # exact enough.
    count, u, v, uu, uv, vv, q, qu, qv = np.zeros((9, height, width), dtype=np.float32)
    largest_step = MAX_STEP * inverse
    for down in range(-RADIUS, RADIUS + 1):
        for right in range(-RADIUS, RADIUS + 1):
            near = padded[RADIUS + down :, RADIUS + right :][:height, :width]
            step = near - inverse
            weight = ((near > 0) & (np.abs(step) <= largest_step)).astype(np.float32)
            du, dv = right * step_u, down * step_v
            step *= weight
            count += weight
            u += du * weight
            v += dv * weight
            uu += du * du * weight
            uv += du * dv * weight
            vv += dv * dv * weight
            q += step
            qu += du * step
            qv += dv * step

    with np.errstate(divide="ignore", invalid="ignore"):
        uu -= u * u / count
        uv -= u * v / count
        vv -= v * v / count
        qu -= q * u / count
        qv -= q * v / count
        determinant = uu * vv - uv * uv
        a = (qu * vv - qv * uv) / determinant
        b = (qv * uu - qu * uv) / determinant
        level = inverse + (q - a * u - b * v) / count
        # Neighbours in one line fix no plane; the smallest triangle of pixels has a third of the unit.
        known &= determinant > 0.1 * (step_u * step_v) ** 2
        rays_u = (np.arange(width) + 0.5) * step_u - (CENTRE[0] + 0.5) / FOCAL[0]
        rays_v = (np.arange(height) + 0.5) * step_v - (CENTRE[1] + 0.5) / FOCAL[1]
        c = level - a * rays_u - b * rays_v[:, None]
        # In the camera y runs down and z away; the side of a plane that is seen looks back.
        vectors = np.stack([-a, b, c], axis=2)
        vectors /= np.linalg.norm(vectors, axis=2, keepdims=True)
    return np.where(known[..., None], vectors, 0).astype(np.float32)
