"""Rooms drawn at random: their size, what stands in them, materials, lamps, and where the camera is."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from mtobal.data.rooms.scene import (
    BED,
    BOOKS,
    CHAIR,
    FURNITURE,
    OBJECTS,
    PICTURE,
    SOFA,
    TABLE,
    TV,
    UNLABELED,
    WINDOW,
    Camera,
    Light,
    Material,
    Scene,
    Shape,
    Solid,
    Triple,
)


@dataclass(frozen=True)
class Piece:
    """Furniture on its own axes: x along its width, z out of its front, the origin on the floor in its middle."""

    solids: tuple[Solid, ...]
    width: float
    depth: float
    height: float

    def placed(self, x: float, z: float, yaw: float, y: float = 0.0) -> tuple[Solid, ...]:
        """Return the solids in the world, turned by `yaw` around the origin and moved to (x, y, z)."""
        cosine, sine = math.cos(yaw), math.sin(yaw)
        return tuple(
            Solid(
                solid.shape,
                (
                    x + cosine * solid.centre[0] + sine * solid.centre[2],
                    y + solid.centre[1],
                    z - sine * solid.centre[0] + cosine * solid.centre[2],
                ),
                solid.half,
                yaw + solid.yaw,
                solid.label,
                solid.material,
            )
            for solid in self.solids
        )


class Floor:
    """Which rectangles of the floor are taken."""

    def __init__(self, width: float, depth: float) -> None:
        self.width = width
        self.depth = depth
        self.taken: list[tuple[float, float, float, float]] = []

    def take(self, x: float, z: float, half_x: float, half_z: float) -> bool:
        """Take a rectangle, if it lies in the room and is free."""
        if abs(x) + half_x > self.width / 2 or abs(z) + half_z > self.depth / 2:
            return False
        for other_x, other_z, other_half_x, other_half_z in self.taken:
            if abs(x - other_x) < half_x + other_half_x and abs(z - other_z) < half_z + other_half_z:
                return False
        self.taken.append((x, z, half_x, half_z))
        return True


def draw_scene(rng: Random) -> Scene:
    """Draw a furnished room. The camera stands near one wall and looks across.

    Examples
    --------
    >>> scene = draw_scene(Random(0))
    >>> len(scene.solids) > 5
    True
    """
    width, depth, height = rng.uniform(3.2, 6.0), rng.uniform(3.5, 6.5), rng.uniform(2.3, 3.0)
    floor = Floor(width, depth)
    camera = Camera(
        position=(rng.uniform(-0.3, 0.3) * width, rng.uniform(1.2, 1.7), depth / 2 - rng.uniform(0.2, 0.6)),
        yaw=rng.uniform(-0.6, 0.6),
        pitch=rng.uniform(-0.45, 0.0),
        roll=rng.gauss(0, 0.03),
    )
    x, _, z = camera.position
    floor.taken.append((x, z, 0.5, 0.7))

    solids: list[Solid] = []
    for build in _furniture(rng):
        _against_wall(rng, floor, build(rng), solids)
    if rng.random() < 0.6:
        _dining(rng, floor, solids)
    for _ in range(rng.randrange(0, 4)):
        piece = _clutter(rng)
        _anywhere(rng, floor, piece, solids)
    _on_the_walls(rng, width, depth, height, solids)

    lights = tuple(
        Light((rng.uniform(-0.3, 0.3) * width, height - 0.3, rng.uniform(-0.3, 0.3) * depth), rng.uniform(1, 4))
        for _ in range(rng.randrange(1, 3))
    )
    wall = _paint(rng)
    return Scene(
        size=(width, height, depth),
        floor=_flooring(rng),
        ceiling=Material(_grey(rng, 0.75, 0.95)),
        wall=wall,
        solids=tuple(solids),
        lights=lights,
        ambient=rng.uniform(0.25, 0.5),
        camera=camera,
    )


def _furniture(rng: Random) -> list[Callable[[Random], Piece]]:
    """Choose what stands along the walls, the largest first."""
    chosen: list[Callable[[Random], Piece]] = []
    living = rng.random() < 0.5
    if living:
        chosen += [_sofa] * rng.randrange(1, 3) + [_media_unit]
    else:
        chosen += [_bed, *([_media_unit] if rng.random() < 0.5 else [])]
    chosen += [_bookshelf] * rng.randrange(0, 3) + [_cabinet] * rng.randrange(0, 3)
    chosen += [_chair] * rng.randrange(0, 2) + [_side_table] * rng.randrange(0, 3)
    return chosen


def _against_wall(rng: Random, floor: Floor, piece: Piece, solids: list[Solid]) -> None:
    """Stand a piece with its back at the far, left or right wall; leave it out where it does not fit."""
    for _ in range(6):
        side = rng.choice((0, 0, 1, 2))
        gap = piece.depth / 2 + rng.uniform(0.01, 0.08)
        if side == 0:
            x, z = rng.uniform(-0.5, 0.5) * max(floor.width - piece.width, 0), -floor.depth / 2 + gap
            yaw, half = 0.0, (piece.width / 2, piece.depth / 2)
        else:
            sign = 1 if side == 1 else -1
            x, z = -sign * (floor.width / 2 - gap), rng.uniform(-0.5, 0.2) * max(floor.depth - piece.width, 0)
            yaw, half = sign * math.pi / 2, (piece.depth / 2, piece.width / 2)
        if floor.take(x, z, *half):
            solids += piece.placed(x, z, yaw)
            return


def _anywhere(rng: Random, floor: Floor, piece: Piece, solids: list[Solid]) -> bool:
    reach = math.hypot(piece.width, piece.depth) / 2
    for _ in range(6):
        x, z = rng.uniform(-0.5, 0.5) * floor.width, rng.uniform(-0.5, 0.5) * floor.depth
        if floor.take(x, z, reach, reach):
            solids += piece.placed(x, z, rng.uniform(-math.pi, math.pi))
            return True
    return False


def _dining(rng: Random, floor: Floor, solids: list[Solid]) -> None:
    """Put a table in the room, with chairs around it and things on it."""
    table = _table(rng, rng.uniform(0.8, 1.5), rng.uniform(0.7, 1.0), rng.uniform(0.7, 0.78))
    reach = max(table.width, table.depth) / 2 + 0.35
    for _ in range(6):
        x, z = rng.uniform(-0.4, 0.4) * floor.width, rng.uniform(-0.4, 0.2) * floor.depth
        if not floor.take(x, z, reach, reach):
            continue
        yaw = rng.uniform(-0.4, 0.4)
        solids += table.placed(x, z, yaw)
        _things_on(rng, x, z, yaw, table, solids)
        chair = _chair(rng)
        for side in rng.sample(range(4), rng.randrange(1, 5)):
            turn = yaw + side * math.pi / 2
            away = (table.depth if side % 2 == 0 else table.width) / 2 + rng.uniform(0.05, 0.25)
            solids += chair.placed(x + math.sin(turn) * away, z + math.cos(turn) * away, turn + math.pi)
        return


def _things_on(rng: Random, x: float, z: float, yaw: float, support: Piece, solids: list[Solid]) -> None:
    """Stand a few things on top of a piece."""
    cosine, sine = math.cos(yaw), math.sin(yaw)
    for _ in range(rng.randrange(0, 4)):
        thing = _small_thing(rng)
        along = rng.uniform(-0.5, 0.5) * max(support.width - thing.width, 0)
        out = rng.uniform(-0.5, 0.5) * max(support.depth - thing.depth, 0)
        solids += thing.placed(
            x + cosine * along + sine * out, z - sine * along + cosine * out, rng.uniform(-3, 3), support.height
        )


def _on_the_walls(rng: Random, width: float, depth: float, height: float, solids: list[Solid]) -> None:
    """Hang pictures and put windows into the far and the side walls, beside each other."""
    far, side = depth / 2, width / 2
    for yaw, length in ((0.0, width), (math.pi / 2, depth), (-math.pi / 2, depth)):
        along = -length / 2 + rng.uniform(0.2, 1.0)
        while along < length / 2 - 0.5:
            kind = rng.random()
            if kind >= 0.75:  # a bare piece of wall
                along += rng.uniform(0.5, 1.5)
                continue
            hanging = _window(rng, height) if kind < 0.3 else _picture(rng)
            if along + hanging.width > length / 2 - 0.1:
                break
            middle = along + hanging.width / 2
            y = min(rng.uniform(1.35, 1.75), height - hanging.height / 2 - 0.1)
            x, z = (middle, -far) if yaw == 0 else (-math.copysign(side, yaw), middle)
            solids += hanging.placed(x, z, yaw, y)
            along += hanging.width + rng.uniform(0.2, 1.5)


def _block(
    label: int,
    material: Material,
    size: Triple,
    centre: Triple,
    shape: Shape = Shape.BOX,
) -> Solid:
    """Build a solid from its full size and its centre."""
    return Solid(shape, centre, (size[0] / 2, size[1] / 2, size[2] / 2), 0.0, label, material)


def _legs(label: int, material: Material, width: float, depth: float, height: float) -> list[Solid]:
    return [
        _block(label, material, (0.05, height, 0.05), (x * (width / 2 - 0.04), height / 2, z * (depth / 2 - 0.04)))
        for x in (-1, 1)
        for z in (-1, 1)
    ]


def _bed(rng: Random) -> Piece:
    width, depth, height = rng.uniform(0.9, 1.8), rng.uniform(1.9, 2.1), rng.uniform(0.4, 0.6)
    frame, cloth, pillow = _wood(rng), _cloth(rng), Material(_grey(rng, 0.6, 0.95))
    solids = [
        _block(BED, frame, (width, 0.25, depth), (0, 0.125, 0)),
        _block(BED, cloth, (width - 0.04, height - 0.25, depth - 0.1), (0, (height + 0.25) / 2, 0.03)),
        _block(BED, frame, (width, height + rng.uniform(0.2, 0.6), 0.06), (0, height / 2 + 0.2, 0.03 - depth / 2)),
    ]
    places = (0,) if width < 1.3 else (-1, 1)
    solids += [
        _block(BED, pillow, (0.6, 0.18, 0.4), (p * width / 4, height + 0.04, 0.35 - depth / 2), Shape.ELLIPSOID)
        for p in places
    ]
    return Piece(tuple(solids), width, depth, height)


def _sofa(rng: Random) -> Piece:
    width, depth, seat, back = (
        rng.uniform(0.9, 2.2),
        rng.uniform(0.8, 1.0),
        rng.uniform(0.38, 0.45),
        rng.uniform(0.7, 0.95),
    )
    cloth, cushion = _cloth(rng), _cloth(rng)
    solids = [
        _block(SOFA, cloth, (width, seat, depth), (0, seat / 2, 0)),
        _block(SOFA, cloth, (width, back, 0.22), (0, back / 2, 0.11 - depth / 2)),
        *(
            _block(SOFA, cloth, (0.18, seat + 0.2, depth), (side * (width / 2 - 0.09), seat / 2 + 0.1, 0))
            for side in (-1, 1)
        ),
    ]
    if rng.random() < 0.6:
        x = rng.uniform(-0.5, 0.5) * max(width - 0.9, 0)
        solids.append(_block(SOFA, cushion, (0.42, 0.4, 0.18), (x, seat + 0.18, 0.3 - depth / 2), Shape.ELLIPSOID))
    return Piece(tuple(solids), width, depth, seat)


def _table(rng: Random, width: float, depth: float, height: float) -> Piece:
    wood = _wood(rng)
    if rng.random() < 0.25:
        solids = [
            _block(TABLE, wood, (width, 0.04, depth), (0, height - 0.02, 0), Shape.CYLINDER),
            _block(TABLE, wood, (0.1, height - 0.04, 0.1), (0, height / 2 - 0.02, 0), Shape.CYLINDER),
            _block(TABLE, wood, (width / 2, 0.04, depth / 2), (0, 0.02, 0), Shape.CYLINDER),
        ]
    else:
        solids = [
            _block(TABLE, wood, (width, 0.04, depth), (0, height - 0.02, 0)),
            *_legs(TABLE, wood, width, depth, height - 0.04),
        ]
    return Piece(tuple(solids), width, depth, height)


def _side_table(rng: Random) -> Piece:
    table = _table(rng, rng.uniform(0.45, 1.1), rng.uniform(0.4, 0.55), rng.uniform(0.45, 0.8))
    return _laden(rng, table)


def _chair(rng: Random) -> Piece:
    width, seat, back = rng.uniform(0.4, 0.5), rng.uniform(0.42, 0.48), rng.uniform(0.35, 0.5)
    wood = _wood(rng)
    cover = _cloth(rng) if rng.random() < 0.5 else wood
    solids = [
        _block(CHAIR, cover, (width, 0.05, width), (0, seat - 0.025, 0)),
        _block(CHAIR, cover, (width, back, 0.04), (0, seat + back / 2, 0.02 - width / 2)),
        *_legs(CHAIR, wood, width, width, seat - 0.05),
    ]
    return Piece(tuple(solids), width, width, seat)


def _bookshelf(rng: Random) -> Piece:
    width, depth, height = rng.uniform(0.6, 1.3), rng.uniform(0.28, 0.38), rng.uniform(1.0, 2.1)
    wood = _wood(rng)
    shelves = rng.randrange(3, 6)
    spacing = (height - 0.04) / shelves
    solids = [
        _block(FURNITURE, wood, (width, height, 0.02), (0, height / 2, 0.01 - depth / 2)),
        *(
            _block(FURNITURE, wood, (0.03, height, depth), (side * (width / 2 - 0.015), height / 2, 0))
            for side in (-1, 1)
        ),
        *(
            _block(FURNITURE, wood, (width - 0.06, 0.03, depth), (0, 0.02 + shelf * spacing, 0))
            for shelf in range(shelves + 1)
        ),
    ]
    for shelf in range(shelves):
        bottom = 0.035 + shelf * spacing
        if rng.random() < 0.75:
            row = rng.uniform(0.4, 0.98) * (width - 0.08)
            tall = rng.uniform(0.55, 0.9) * (spacing - 0.04)
            x = rng.uniform(-0.5, 0.5) * (width - 0.08 - row)
            solids.append(_block(BOOKS, _spines(rng), (row, tall, depth * 0.7), (x, bottom + tall / 2, 0)))
        elif rng.random() < 0.5:
            size = 0.6 * min(spacing, depth)
            x = rng.uniform(-0.4, 0.4) * (width - size)
            solids.append(
                _block(OBJECTS, _vivid(rng), (size, size, size), (x, bottom + size / 2, 0), Shape.CYLINDER)
            )
    return Piece(tuple(solids), width, depth, height)


def _cabinet(rng: Random) -> Piece:
    width, depth, height = rng.uniform(0.5, 1.4), rng.uniform(0.4, 0.6), rng.uniform(0.7, 2.0)
    wood = _wood(rng)
    doors = rng.randrange(1, 4)
    leaf = (width - 0.04) / doors
    front, knob = _wood(rng), Material(_grey(rng, 0.1, 0.9))
    solids = [_block(FURNITURE, wood, (width, height, depth - 0.04), (0, height / 2, -0.02))]
    for door in range(doors):
        x = (door - (doors - 1) / 2) * leaf
        solids += [
            _block(FURNITURE, front, (leaf - 0.02, height - 0.06, 0.02), (x, height / 2, depth / 2 - 0.03)),
            _block(
                FURNITURE,
                knob,
                (0.04, 0.04, 0.04),
                (x + 0.35 * leaf, height / 2, depth / 2 - 0.01),
                Shape.ELLIPSOID,
            ),
        ]
    return _laden(rng, Piece(tuple(solids), width, depth, height))


def _media_unit(rng: Random) -> Piece:
    width, depth, height = rng.uniform(1.1, 1.7), rng.uniform(0.4, 0.5), rng.uniform(0.4, 0.7)
    screen = rng.uniform(0.7, 1.2)
    picture = Material(
        _colour(rng, 0.0, 0.08),
        _colour(rng, 0.0, 0.6),
        (rng.uniform(2, 8), rng.uniform(2, 8)),
        rng.uniform(1, 3),
        contrast=float(rng.random() < 0.3),
        glow=rng.uniform(0.0, 0.3),
    )
    case = Material(_grey(rng, 0.02, 0.1))
    tall = screen * 9 / 16
    solids = [
        _block(FURNITURE, _wood(rng), (width, height, depth), (0, height / 2, 0)),
        _block(TV, case, (screen + 0.05, tall + 0.05, 0.05), (0, height + tall / 2 + 0.08, 0)),
        _block(TV, picture, (screen, tall, 0.01), (0, height + tall / 2 + 0.08, 0.025)),
        _block(TV, case, (0.3, 0.06, 0.2), (0, height + 0.03, 0)),
    ]
    return Piece(tuple(solids), width, depth, height)


def _picture(rng: Random) -> Piece:
    width, height = rng.uniform(0.3, 1.1), rng.uniform(0.3, 0.8)
    paint = Material(
        _colour(rng, 0.05, 0.95),
        _colour(rng, 0.05, 0.95),
        (rng.uniform(3, 20), rng.uniform(3, 20)),
        rng.choice([0.0, rng.uniform(1, 3)]),
        contrast=rng.uniform(0.5, 1.0),
        sharpness=rng.uniform(0.5, 5.0),
    )
    frame = Material(_grey(rng, 0.02, 0.9))
    solids = (
        _block(PICTURE, frame, (width, height, 0.05), (0, 0, 0)),
        _block(PICTURE, paint, (width - 0.06, height - 0.06, 0.02), (0, 0, 0.025)),
    )
    return Piece(solids, width, 0.05, height)


def _window(rng: Random, room_height: float) -> Piece:
    width, height = rng.uniform(0.7, 1.6), min(rng.uniform(0.8, 1.4), room_height - 1.0)
    frame = Material(_grey(rng, 0.6, 0.95))
    # What is outside is farther than the depth sensor reaches.
    outside = Material(
        (0.75, 0.85, 0.95),
        _colour(rng, 0.2, 0.7),
        (rng.uniform(0.5, 2), rng.uniform(0.5, 4)),
        rng.uniform(1, 3),
        contrast=0.8,
        glow=rng.uniform(0.3, 1.5),
        opaque=False,
    )
    panes = rng.randrange(1, 4)
    pane = (width - 0.06) / panes
    solids = [_block(WINDOW, frame, (width, height, 0.06), (0, 0, 0))]
    for index in range(panes):
        x = (index - (panes - 1) / 2) * pane
        solids.append(_block(WINDOW, outside, (pane - 0.05, height - 0.1, 0.02), (x, 0, 0.025)))
    return Piece(tuple(solids), width, 0.06, height)


def _clutter(rng: Random) -> Piece:
    """Build something that stands around on the floor; one in three is of no class."""
    kind = rng.randrange(0, 3)
    label = UNLABELED if rng.random() < 1 / 3 else OBJECTS
    if kind == 0:
        size = (rng.uniform(0.2, 0.5), rng.uniform(0.2, 0.5), rng.uniform(0.2, 0.5))
        solids = [_block(label, _vivid(rng), size, (0, size[1] / 2, 0))]
    elif kind == 1:
        radius, height = rng.uniform(0.2, 0.45), rng.uniform(0.25, 0.6)
        size = (radius, height, radius)
        solids = [_block(label, _vivid(rng), size, (0, height / 2, 0), Shape.CYLINDER)]
        leaves = rng.uniform(0.3, 0.6)
        if rng.random() < 0.5:
            green = Material(_colour(rng, 0.05, 0.2), (0.2, 0.6, 0.15), (40.0, 30.0), contrast=1.0)
            solids.append(
                _block(label, green, (leaves, leaves, leaves), (0, height + leaves * 0.4, 0), Shape.ELLIPSOID)
            )
    else:
        size = (rng.uniform(0.15, 0.6),) * 3
        solids = [_block(label, _vivid(rng), size, (0, size[1] / 2, 0), Shape.ELLIPSOID)]
    return Piece(tuple(solids), size[0], size[2], size[1])


def _small_thing(rng: Random) -> Piece:
    kind = rng.randrange(0, 3)
    if kind == 0:
        size = (rng.uniform(0.15, 0.25), rng.uniform(0.03, 0.15), rng.uniform(0.2, 0.3))
        solids = (_block(BOOKS, _vivid(rng), size, (0, size[1] / 2, 0)),)
    else:
        across = rng.uniform(0.08, 0.25)
        size = (across, rng.uniform(0.08, 0.35), across)
        shape = Shape.CYLINDER if kind == 1 else Shape.ELLIPSOID
        solids = (_block(OBJECTS, _vivid(rng), size, (0, size[1] / 2, 0), shape),)
    return Piece(solids, size[0], size[2], size[1])


def _laden(rng: Random, piece: Piece) -> Piece:
    solids: list[Solid] = []
    _things_on(rng, 0.0, 0.0, 0.0, piece, solids)
    return Piece((*piece.solids, *solids), piece.width, piece.depth, piece.height)


def _colour(rng: Random, low: float, high: float) -> Triple:
    return rng.uniform(low, high), rng.uniform(low, high), rng.uniform(low, high)


def _grey(rng: Random, low: float, high: float) -> Triple:
    level = rng.uniform(low, high)
    red, green, blue = (min(max(level + rng.gauss(0, 0.03), 0.01), 1.0) for _ in range(3))
    return red, green, blue


def _shade_of(rng: Random, colour: Triple, low: float, high: float) -> Triple:
    factor = rng.uniform(low, high)
    red, green, blue = (min(channel * factor, 1.0) for channel in colour)
    return red, green, blue


def _wood(rng: Random) -> Material:
    light = rng.uniform(0.15, 1.0)
    base = (0.75 * light, rng.uniform(0.45, 0.6) * light, rng.uniform(0.2, 0.45) * light)
    return Material(
        base,
        _shade_of(rng, base, 0.4, 0.8),
        (rng.uniform(15, 60), rng.uniform(2, 10)),
        warp=rng.uniform(1, 4),
        contrast=rng.uniform(0.0, 0.8),
    )


def _cloth(rng: Random) -> Material:
    base = _colour(rng, 0.1, 0.9)
    return Material(
        base,
        _shade_of(rng, base, 0.3, 1.5),
        (rng.uniform(10, 60), rng.choice([0.0, rng.uniform(10, 60)])),
        contrast=rng.choice([0.0, rng.uniform(0.2, 1.0)]),
        sharpness=rng.uniform(0.5, 6),
    )


def _vivid(rng: Random) -> Material:
    return Material(
        _colour(rng, 0.02, 1.0),
        _colour(rng, 0.02, 1.0),
        (rng.uniform(10, 80), rng.choice([0.0, rng.uniform(10, 80)])),
        contrast=rng.choice([0.0, rng.uniform(0.2, 1.0)]),
        sharpness=rng.uniform(0.5, 6),
    )


def _spines(rng: Random) -> Material:
    return Material(
        _colour(rng, 0.05, 0.9),
        _colour(rng, 0.05, 0.9),
        (rng.uniform(60, 140), 0.0),
        contrast=rng.uniform(0.6, 1.0),
        sharpness=rng.uniform(2, 8),
    )


def _paint(rng: Random) -> Material:
    base = _grey(rng, 0.5, 0.95) if rng.random() < 0.6 else _colour(rng, 0.35, 0.95)
    return Material(
        base,
        _shade_of(rng, base, 0.7, 1.05),
        (rng.uniform(6, 40), rng.choice([0.0, rng.uniform(6, 40)])),
        contrast=rng.choice([0.0, 0.0, rng.uniform(0.2, 0.8)]),
        sharpness=rng.uniform(0.5, 4),
    )


def _flooring(rng: Random) -> Material:
    kind = rng.randrange(0, 3)
    if kind == 0:
        return _wood(rng)
    base = _colour(rng, 0.2, 0.8) if kind == 1 else _grey(rng, 0.3, 0.9)
    return Material(
        base,
        _shade_of(rng, base, 0.5, 1.2),
        (rng.uniform(5, 20), rng.uniform(5, 20)),
        contrast=rng.uniform(0.0, 1.0),
        sharpness=rng.uniform(0.5, 8),
    )
