"""From hits to what a cheap colour camera makes of them."""

from __future__ import annotations

import numpy as np

from mtobal.data.rooms.raycasting import PRECISION, Hits
from mtobal.data.rooms.scene import Array, Scene

READ_NOISE = 0.008
SHOT_NOISE = 0.02
GAMMA = 2.2


def shade(scene: Scene, hits: Hits, rng: np.random.Generator) -> Array:
    """Return the image (3, H, W) from 0 to 1: textures, lamps, the camera's exposure, white balance and noise."""
    materials = (scene.floor, scene.ceiling, scene.wall, *(solid.material for solid in scene.solids))
    table = np.array(
        [(*m.colour, *m.accent, *m.waves, m.warp, m.contrast, m.sharpness, m.glow) for m in materials]
    ).T.astype(PRECISION)
    values = table[:, hits.surface]
    colour, accent = values[0:3], values[3:6]
    blend = _texture(hits, *values[6:11])
    reflectance = colour + blend * (accent - colour)

    light = np.full(hits.depth.shape, scene.ambient, dtype=PRECISION)
    for lamp in scene.lights:
        to_lamp = np.array(lamp.position, dtype=PRECISION)[:, None, None] - hits.points
        squared = (to_lamp**2).sum(axis=0)
        facing = np.maximum((to_lamp * hits.normals).sum(axis=0), 0) / np.sqrt(squared)
        light += lamp.strength * facing / (0.5 + squared)
    radiance = reflectance * (light + values[11])

    # The camera exposes for its own picture, like any phone, and judges the colour of the light a little wrong.
    exposure = float(0.45 / (radiance.mean() + 0.05) * rng.uniform(0.8, 1.2))
    balance = rng.uniform(0.9, 1.1, size=(3, 1, 1)).astype(PRECISION)
    signal = np.clip(radiance * exposure * balance, 0, 1)
    noise = rng.standard_normal(signal.shape, dtype=PRECISION)
    noisy = signal + noise * np.sqrt(READ_NOISE**2 + SHOT_NOISE**2 * signal)
    image: Array = np.clip(noisy, 0, 1) ** (1 / GAMMA)
    return image


def _texture(hits: Hits, first: Array, second: Array, warp: Array, contrast: Array, sharpness: Array) -> Array:
    """Return how far each pixel is from its colour to its accent, 0 to 1, by the waves on its face."""
    x, y, z = hits.local
    steep = np.abs(hits.normals[1]) < 0.7
    # A face that stands has its height as second axis, one that lies its depth.
    u, v = np.where(steep, x + z, x), np.where(steep, y, z)
    across = np.where((second > 0) & (warp == 0), np.cos(second * v), 1.0)
    wave = np.sin(first * u + warp * np.sin(0.7 * second * v)) * across
    blend: Array = contrast * (0.5 + 0.5 * np.tanh(sharpness * wave))
    return blend
