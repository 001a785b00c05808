"""The nearest surface along the ray of every pixel, exactly."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mtobal.data.rooms.scene import FOCAL_LENGTH, Array, Camera, Scene, Shape

ON_FLOOR, ON_CEILING, ON_WALL, FIRST_SOLID = 0, 1, 2, 3
"""Indices of surfaces: those of the room, then one a solid."""

_CORNERS = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], dtype=np.float64)
_NEAR = 0.05

PRECISION = np.float32
"""Of everything that there is one of a pixel: a few micrometres in a room."""


@dataclass(frozen=True)
class Hits:
    """What the rays hit, one entry a pixel.

    Attributes
    ----------
    surface : array of shape (H, W)
        Which surface.
    depth : array of shape (H, W)
        Metres along the optical axis.
    points, normals : array of shape (3, H, W)
        Where, and the unit normal towards the room, in world coordinates.
    local : array of shape (3, H, W)
        Where, in metres from the solid's centre along its own axes.
    """

    surface: Array
    depth: Array
    points: Array
    normals: Array
    local: Array


def cast(scene: Scene, height: int, width: int) -> Hits:
    """Follow one ray through the centre of every pixel.

    Every solid is the unit box, ball or cylinder in coordinates of its own; it meets only those rays that pass
    through the rectangle of the image which its bounding box covers.
    """
    rays = scene.camera.rays(height, width).astype(PRECISION)
    eye = np.array(scene.camera.position)
    centres, halves, cosines, sines = _geometry(scene)
    rectangles = _rectangles(scene.camera, centres, halves, cosines, sines, height, width).tolist()
    origins = (np.stack(_turned(eye[:, None] - centres, cosines, sines)) / halves).astype(PRECISION)
    centres, halves = centres.astype(PRECISION), halves.astype(PRECISION)
    cosines, sines = cosines.astype(PRECISION), sines.astype(PRECISION)
    turned: dict[float, Array] = {}
    owner = np.zeros((height, width), dtype=np.intp)
    with np.errstate(divide="ignore", over="ignore"):
        # From inside the room, the first surface of its box is the far one.
        inverse = halves[:, 0, None, None] / rays
        depth = (np.abs(inverse) - origins[:, 0, None, None] * inverse).min(axis=0)
        for index, (top, bottom, left, right) in enumerate(rectangles, start=1):
            if top >= bottom or left >= right:
                continue
            window = np.s_[top:bottom, left:right]
            solid = scene.solids[index - 1]
            if solid.yaw not in turned:  # the parts of one piece of furniture share it
                turned[solid.yaw] = np.stack(_turned(rays, cosines[index], sines[index]))
            directions = turned[solid.yaw][:, top:bottom, left:right] / halves[:, index, None, None]
            nearest = _INTERSECTIONS[solid.shape](origins[:, index], directions)
            hit = (nearest > 0) & (nearest < depth[window])
            np.copyto(depth[window], nearest, where=hit)
            owner[window][hit] = index
    return _describe(scene, rays, depth, owner, centres, halves, cosines, sines)


def _geometry(scene: Scene) -> tuple[Array, Array, Array, Array]:
    """Return centres and half extents (3, N), cosines and sines of the yaws (N,); the first is the room itself."""
    half = np.array(scene.size) / 2
    room = np.array([0.0, half[1], 0.0])
    centres = np.array([room, *(solid.centre for solid in scene.solids)]).T
    halves = np.array([half, *(solid.half for solid in scene.solids)]).T
    yaws = np.array([0.0, *(solid.yaw for solid in scene.solids)])
    return centres, halves, np.cos(yaws), np.sin(yaws)


def _turned(vectors: Array, cosine: Array, sine: Array) -> tuple[Array, Array, Array]:
    """Take vectors of the world to the axes of a solid."""
    x, y, z = vectors
    return cosine * x - sine * z, y, sine * x + cosine * z


def _rectangles(
    camera: Camera, centres: Array, halves: Array, cosines: Array, sines: Array, height: int, width: int
) -> Array:
    """Return the rows (top, bottom) and columns (left, right) that each solid's bounding box may cover."""
    if centres.shape[1] == 1:
        return np.zeros((0, 4), dtype=int)
    offsets = halves[:, 1:, None] * _CORNERS.T[:, None]  # (3, N, 8)
    x, y, z = _turned(offsets, cosines[1:, None], -sines[1:, None])  # the turn back
    world = np.stack([x, y, z]) + centres[:, 1:, None] - np.array(camera.position)[:, None, None]
    x, y, z = np.tensordot(camera.rotation().T, world, axes=1)
    ahead = -z
    focal = FOCAL_LENGTH * width
    # A box that reaches behind the camera may cover everything.
    columns = np.where(ahead > _NEAR, width / 2 + focal * x / np.maximum(ahead, _NEAR), np.nan)
    rows = np.where(ahead > _NEAR, height / 2 - focal * y / np.maximum(ahead, _NEAR), np.nan)
    crosses = (ahead <= _NEAR).any(axis=1)
    behind = (ahead <= _NEAR).all(axis=1)
    bounds = []
    for values, size in ((rows, height), (columns, width)):
        low, high = np.where(crosses, 0, values.min(axis=1)), np.where(crosses, size, values.max(axis=1))
        # The pixels whose centres lie between, and one more for rounding.
        bounds += [np.clip(np.floor(low - 1.5), 0, size), np.clip(np.ceil(high + 1.5), 0, size)]
    bounds[1] = np.where(behind, 0, bounds[1])
    return np.stack(bounds, axis=1).astype(int)


def _box(origin: Array, directions: Array) -> Array:
    inverse = 1 / directions
    middle = -origin[:, None, None] * inverse
    reach = np.abs(inverse)
    enter, leave = middle - reach, middle + reach
    near = np.maximum(np.maximum(enter[0], enter[1]), enter[2])
    far = np.minimum(np.minimum(leave[0], leave[1]), leave[2])
    return np.where(near < far, near, np.inf)


def _ellipsoid(origin: Array, directions: Array) -> Array:
    return _quadratic(origin, directions, (0, 1, 2))[0]


def _cylinder(origin: Array, directions: Array) -> Array:
    enter, leave = _quadratic(origin, directions, (0, 2))
    inverse = 1 / directions[1]
    middle, reach = -origin[1] * inverse, np.abs(inverse)
    near = np.maximum(enter, middle - reach)
    return np.where(near < np.minimum(leave, middle + reach), near, np.inf)


def _quadratic(origin: Array, directions: Array, axes: tuple[int, ...]) -> tuple[Array, Array]:
    """Where rays enter and leave the unit ball of some axes; infinities where they miss it."""
    a = sum(directions[axis] ** 2 for axis in axes)
    b = sum(origin[axis] * directions[axis] for axis in axes)
    c = sum(origin[axis] ** 2 for axis in axes) - 1
    discriminant = b * b - a * c
    root = np.sqrt(np.maximum(discriminant, 0))
    miss = discriminant <= 0
    return np.where(miss, np.inf, (-b - root) / a), np.where(miss, -np.inf, (root - b) / a)


_INTERSECTIONS = {Shape.BOX: _box, Shape.ELLIPSOID: _ellipsoid, Shape.CYLINDER: _cylinder}


def _describe(
    scene: Scene,
    rays: Array,
    depth: Array,
    owner: Array,
    centres: Array,
    halves: Array,
    cosines: Array,
    sines: Array,
) -> Hits:
    """Work out points and normals, once the nearest solid of every pixel is known."""
    points = np.array(scene.camera.position, dtype=PRECISION)[:, None, None] + depth * rays
    cosine, sine, half = cosines[owner], sines[owner], halves[:, owner]
    local = np.stack(_turned(points - centres[:, owner], cosine, sine))
    unit = local / half
    size = np.abs(unit)
    shapes = np.array([Shape.BOX, *(solid.shape for solid in scene.solids)])[owner]

    # A box: the axis on which the point reaches farthest. A cylinder: its axis at the caps, else away from it.
    first = size[0] >= np.maximum(size[1], size[2])
    level = ~first & (size[1] >= size[2])
    normals = np.sign(unit) * np.stack([first, level, ~first & ~level])
    round_ = np.flatnonzero(shapes)
    if len(round_):
        flat_unit, flat_half = unit.reshape(3, -1)[:, round_], half.reshape(3, -1)[:, round_]
        gradient = flat_unit / flat_half
        upright = shapes.flat[round_] == Shape.CYLINDER
        cap = upright & (np.abs(flat_unit[1]) > np.hypot(flat_unit[0], flat_unit[2]))
        gradient[1, upright & ~cap] = 0
        gradient[0, cap] = gradient[2, cap] = 0
        normals.reshape(3, -1)[:, round_] = gradient / np.sqrt((gradient**2).sum(axis=0))
    inside = owner == 0
    normals = np.stack(_turned(normals, cosine, -sine)) * np.where(inside, PRECISION(-1), PRECISION(1))
    surface = np.where(
        inside,
        np.where(level, np.where(unit[1] < 0, ON_FLOOR, ON_CEILING), ON_WALL),
        owner + (FIRST_SOLID - 1),
    )
    return Hits(surface, depth, points, normals, local)
