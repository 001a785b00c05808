"""What a room is made of: solids with materials, lights, and the camera that looks at them.

World coordinates are metres, y points up, and the origin lies on the floor in the middle of the room. Camera
coordinates are x to the right, y up, z towards the viewer. A yaw turns around the vertical: it takes +z to
(sin yaw, 0, cos yaw).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Triple = tuple[float, float, float]

CLASSES = (
    "bed",
    "books",
    "ceiling",
    "chair",
    "floor",
    "furniture",
    "objects",
    "picture",
    "sofa",
    "table",
    "tv",
    "wall",
    "window",
)
"""The 13 classes of NYUv2, in the order of their indices."""

BED, BOOKS, CEILING, CHAIR, FLOOR, FURNITURE, OBJECTS, PICTURE, SOFA, TABLE, TV, WALL, WINDOW = range(13)
UNLABELED = -1
FOCAL_LENGTH = 518.86 / 640
"""Of the Kinect's colour camera, in widths of its image."""


class Shape(IntEnum):
    """Solids that fill their bounding box: a box, an ellipsoid, an upright elliptic cylinder."""

    BOX = 0
    ELLIPSOID = 1
    CYLINDER = 2


@dataclass(frozen=True)
class Material:
    """Two colours in waves: a plain wall, tiles, planks, cloth.

    Attributes
    ----------
    colour, accent : tuple of 3 float
        Reflectances from 0 to 1; the texture goes from one to the other.
    waves : tuple of 2 float
        Radians a metre along the two axes of a face; zero for no change along it.
    warp : float
        How far, in radians, waves along the first axis bend with the second: the grain of wood.
    contrast : float
        0 for a plain colour, 1 for all of both.
    sharpness : float
        Below 1 for smooth waves, far above 1 for hard edges.
    glow : float
        Light that the surface gives off by itself.
    opaque : bool
        Whether the depth sensor sees it; what it does not see has no depth and no normal.
    """

    colour: Triple
    accent: Triple = (0.0, 0.0, 0.0)
    waves: tuple[float, float] = (0.0, 0.0)
    warp: float = 0.0
    contrast: float = 0.0
    sharpness: float = 1.0
    glow: float = 0.0
    opaque: bool = True


@dataclass(frozen=True)
class Solid:
    """A solid, with the class of its surface.

    Attributes
    ----------
    shape : Shape
        What fills the bounding box.
    centre, half : tuple of 3 float
        Centre, and half the extent along the solid's own axes, in metres.
    yaw : float
        Turn around the vertical, in radians.
    label : int
        Index of the class, or -1.
    material : Material
        What it looks like.
    """

    shape: Shape
    centre: Triple
    half: Triple
    yaw: float
    label: int
    material: Material


@dataclass(frozen=True)
class Camera:
    """Where the camera is, and how it is turned: yaw around the vertical, pitch (up), then roll, in radians."""

    position: Triple
    yaw: float = 0.0
    pitch: float = 0.0
    roll: float = 0.0

    def rotation(self) -> Array:
        """Return the matrix that takes camera coordinates to world coordinates."""
        turns = []
        for angle, (first, second) in ((self.yaw, (2, 0)), (self.pitch, (1, 2)), (self.roll, (0, 1))):
            turn = np.eye(3)
            turn[[first, second], [first, second]] = math.cos(angle)
            turn[second, first], turn[first, second] = math.sin(angle), -math.sin(angle)
            turns.append(turn)
        return turns[0] @ turns[1] @ turns[2]

    def rays(self, height: int, width: int) -> Array:
        """Return the directions (3, height, width) in the world of the rays through the centres of the pixels.

        They are so long that a multiple of one is as many metres deep.
        """
        focal = FOCAL_LENGTH * width
        x = (np.arange(width) + 0.5 - width / 2) / focal
        y = -(np.arange(height) + 0.5 - height / 2) / focal
        right, up, back = self.rotation().T[:, :, None, None]
        rays: Array = right * x + up * y[:, None] - back
        return rays


@dataclass(frozen=True)
class Light:
    """A lamp: where it is, and its strength at one metre."""

    position: Triple
    strength: float


@dataclass(frozen=True)
class Scene:
    """A room, what stands in it, and who looks.

    Attributes
    ----------
    size : tuple of 3 float
        Extent of the room along x, y and z.
    floor, ceiling, wall : Material
        Of the room itself.
    solids : tuple of Solid
        What stands and hangs in it.
    lights : tuple of Light
        Lamps.
    ambient : float
        Light from everywhere.
    camera : Camera
        Inside the room and outside of all solids.
    """

    size: Triple
    floor: Material
    ceiling: Material
    wall: Material
    solids: tuple[Solid, ...]
    lights: tuple[Light, ...]
    ambient: float
    camera: Camera
