"""Rooms: exact geometry against what can be worked out by hand, determinism, and the form of NYUv2."""

from __future__ import annotations

import hashlib
import math
import subprocess
import sys
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mtobal import data as data_sets
from mtobal.data.rooms import rooms
from mtobal.data.rooms.dataset import annotate
from mtobal.data.rooms.furnishing import draw_scene
from mtobal.data.rooms.raycasting import FIRST_SOLID, ON_CEILING, ON_FLOOR, ON_WALL, cast
from mtobal.data.rooms.scene import (
    CEILING,
    CLASSES,
    FLOOR,
    FOCAL_LENGTH,
    WALL,
    Camera,
    Light,
    Material,
    Scene,
    Shape,
    Solid,
)
from mtobal.errors import UsageError

HEIGHT, WIDTH = 30, 40
GREY = Material((0.5, 0.5, 0.5))
TOLERANCE = 2e-5  # metres; a float holds a room to about a micrometre


def scene(*solids: Solid, camera: Camera | None = None, size: tuple[float, float, float] = (4, 2.5, 6)) -> Scene:
    camera = camera or Camera(position=(0.0, 1.25, 2.0))
    return Scene(size, GREY, GREY, GREY, solids, (Light((0, 2.4, 0), 2.0),), 0.3, camera)


def solid(shape: Shape, centre: tuple[float, float, float], half: tuple[float, float, float], yaw: float) -> Solid:
    return Solid(shape, centre, half, yaw, 6, GREY)


def pixels() -> tuple[np.ndarray, np.ndarray]:
    """Slopes of the rays to the right and up."""
    focal = FOCAL_LENGTH * WIDTH
    right = (np.arange(WIDTH) + 0.5 - WIDTH / 2) / focal
    up = (HEIGHT / 2 - np.arange(HEIGHT) - 0.5) / focal
    return np.broadcast_to(right, (HEIGHT, WIDTH)), np.broadcast_to(up[:, None], (HEIGHT, WIDTH))


def test_an_empty_room_is_the_nearest_of_five_planes() -> None:
    hits = cast(scene(), HEIGHT, WIDTH)
    right, up = pixels()
    planes = {
        "wall": np.full((HEIGHT, WIDTH), 5.0),  # from z = 2 to z = -3
        "side": 2 / np.abs(right),
        "floor": np.where(up < 0, 1.25 / np.abs(up), np.inf),
        "ceiling": np.where(up > 0, 1.25 / np.abs(up), np.inf),
    }
    assert hits.depth == pytest.approx(np.minimum.reduce(list(planes.values())), abs=TOLERANCE)
    nearest = np.array(list(planes))[np.argmin(np.stack(list(planes.values())), axis=0)]
    surfaces = {"wall": ON_WALL, "side": ON_WALL, "floor": ON_FLOOR, "ceiling": ON_CEILING}
    assert (hits.surface == np.vectorize(surfaces.get)(nearest)).all()
    normals = {"wall": (0, 0, 1), "floor": (0, 1, 0), "ceiling": (0, -1, 0)}
    for name, normal in normals.items():
        assert (normal == hits.normals[:, nearest == name].T).all()
    assert (hits.normals[0, nearest == "side"] == -np.sign(right[nearest == "side"])).all()


def test_a_ball_has_the_depth_and_normals_of_the_textbook() -> None:
    centre, radius = np.array([0.2, 1.0, -0.5]), 0.6
    hits = cast(scene(solid(Shape.ELLIPSOID, tuple(centre), (radius,) * 3, 0.7)), HEIGHT, WIDTH)
    rays = np.stack([*pixels(), -np.ones((HEIGHT, WIDTH))])
    to_eye = np.array([0.0, 1.25, 2.0]) - centre
    a, b = (rays**2).sum(0), np.tensordot(to_eye, rays, axes=1)
    inside = b * b - a * (to_eye @ to_eye - radius**2)
    seen = hits.surface == FIRST_SOLID
    assert seen.sum() > 50
    assert (seen == (inside > 0)).all()
    depth = (-b - np.sqrt(inside.clip(0))) / a
    assert hits.depth[seen] == pytest.approx(depth[seen], abs=1e-4)
    normals = (to_eye[:, None, None] + depth * rays) / radius
    assert hits.normals[:, seen] == pytest.approx(normals[:, seen], abs=2e-3)


def test_a_turned_box_shows_two_faces_at_the_angle_of_its_turn() -> None:
    yaw = math.radians(30)
    hits = cast(scene(solid(Shape.BOX, (0.0, 0.5, -0.5), (0.5, 0.4, 0.3), yaw)), HEIGHT, WIDTH)
    seen = hits.surface == FIRST_SOLID
    front = np.array([math.sin(yaw), 0, math.cos(yaw)])
    side = np.array([-math.cos(yaw), 0, math.sin(yaw)])
    normals, points = hits.normals[:, seen].T, hits.points[:, seen].T - [0.0, 0.5, -0.5]
    for normal, distance in ((front, 0.3), (side, 0.5), (np.array([0, 1, 0]), 0.4)):
        facing = normals @ normal > 0.999
        assert facing.any()
        assert points[facing] @ normal == pytest.approx(np.full(facing.sum(), distance), abs=TOLERANCE)
    assert ((normals @ np.stack([front, side, [0, 1, 0]]).T).max(axis=1) > 0.999).all()


def test_an_upright_cylinder_is_round_and_has_a_flat_top() -> None:
    hits = cast(scene(solid(Shape.CYLINDER, (0.0, 0.4, 0.0), (0.5, 0.4, 0.5), 0.0)), HEIGHT, WIDTH)
    seen = hits.surface == FIRST_SOLID
    normals, points = hits.normals[:, seen], hits.points[:, seen]
    top = normals[1] == 1
    assert top.any()
    assert not top.all()
    assert points[1, top] == pytest.approx(np.full(top.sum(), 0.8), abs=TOLERANCE)
    round_points = points[:, ~top][[0, 2]]
    assert np.hypot(*round_points) == pytest.approx(np.full((~top).sum(), 0.5), abs=TOLERANCE)
    assert normals[:, ~top][[0, 2]] == pytest.approx(round_points / 0.5, abs=1e-3)


def size_in(each: Solid, points: np.ndarray) -> np.ndarray:
    """Return how far points are from the middle of a solid, whose surface is at 1."""
    x, y, z = points - np.array(each.centre)[:, None, None]
    cosine, sine = math.cos(each.yaw), math.sin(each.yaw)
    x, y, z = np.stack([cosine * x - sine * z, y, sine * x + cosine * z]) / np.array(each.half)[:, None, None]
    if each.shape is Shape.ELLIPSOID:
        return np.sqrt(x * x + y * y + z * z)
    flat = np.hypot(x, z) if each.shape is Shape.CYLINDER else np.maximum(np.abs(x), np.abs(z))
    return np.maximum(np.abs(y), flat)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_every_point_lies_on_the_surface_that_it_names_and_none_is_hidden(seed: int) -> None:
    drawn = draw_scene(Random(seed))
    hits = cast(drawn, HEIGHT, WIDTH)
    rays = drawn.camera.rays(HEIGHT, WIDTH)
    assert hits.points == pytest.approx(
        np.array(drawn.camera.position)[:, None, None] + hits.depth * rays, abs=1e-4
    )
    assert np.linalg.norm(hits.normals, axis=0) == pytest.approx(np.ones((HEIGHT, WIDTH)), abs=1e-5)
    assert ((hits.normals * rays).sum(axis=0) < 1e-5).all()  # towards the camera
    eye = np.array(drawn.camera.position)[:, None, None]
    for index, each in enumerate(drawn.solids):
        own = hits.surface == FIRST_SOLID + index
        slack = 1e-4 / min(each.half)
        assert np.abs(size_in(each, hits.points)[own] - 1).max(initial=0) < slack
        # On the way to what a ray hit, it passes through no solid.
        for share in np.linspace(0.02, 0.98, 13):
            assert (size_in(each, eye + share * hits.depth * rays) > 1 - slack).all()


def test_the_rectangle_of_a_solid_leaves_nothing_out() -> None:
    drawn = draw_scene(Random(4))
    everything = cast(drawn, HEIGHT, WIDTH)
    for index, each in enumerate(drawn.solids):
        alone = cast(scene(each, camera=drawn.camera, size=drawn.size), HEIGHT, WIDTH)
        shown = everything.surface == FIRST_SOLID + index
        assert (alone.surface[shown] == FIRST_SOLID).all()
        assert (everything.depth <= alone.depth + TOLERANCE).all()


def test_targets_are_in_the_coordinates_of_a_turned_camera() -> None:
    camera = Camera(position=(0.3, 1.4, 2.0), yaw=0.4, pitch=-0.3, roll=0.1)
    turned = scene(camera=camera)
    labels, depth, normals = annotate(turned, cast(turned, HEIGHT, WIDTH))
    assert {CLASSES[label] for label in np.unique(labels)} <= {"floor", "wall", "ceiling"}
    right, up = pixels()
    points = depth * np.stack([right, up, -np.ones_like(right)])  # before the camera, as the targets tell it
    world = np.tensordot(camera.rotation(), points, axes=1) + np.array(camera.position)[:, None, None]
    assert world[1][labels == FLOOR] == pytest.approx(np.zeros((labels == FLOOR).sum()), abs=TOLERANCE)
    upwards = camera.rotation().T @ [0, 1, 0]
    assert pytest.approx(np.tile(upwards, ((labels == FLOOR).sum(), 1)), abs=1e-6) == normals[:, labels == FLOOR].T
    walls = world[:, labels == WALL]
    assert np.minimum(np.abs(np.abs(walls[0]) - 2), np.abs(np.abs(walls[2]) - 3)).max() < TOLERANCE
    assert (labels == CEILING).sum() + (labels == FLOOR).sum() + (labels == WALL).sum() == HEIGHT * WIDTH


def test_the_camera_looks_where_it_is_turned() -> None:
    for camera, forward in (
        (Camera((0, 1, 0)), (0, 0, -1)),
        (Camera((0, 1, 0), yaw=math.pi / 2), (-1, 0, 0)),
        (Camera((0, 1, 0), pitch=math.pi / 2), (0, 1, 0)),
    ):
        assert camera.rotation() @ [0, 0, -1] == pytest.approx(forward, abs=1e-12)


def test_the_depth_sensor_looks_through_glass() -> None:
    glass = Solid(Shape.BOX, (0.0, 1.25, -1.0), (0.5, 0.5, 0.02), 0.0, 12, Material((1, 1, 1), opaque=False))
    labels, depth, normals = annotate(scene(glass), cast(scene(glass), HEIGHT, WIDTH))
    window = labels == 12
    assert window.any()
    assert (depth[window] == 0).all()
    assert (normals[:, window] == 0).all()
    assert (depth[~window] > 0).all()
    assert (normals[:, ~window] != 0).any(axis=0).all()


def digest(options: dict[str, int]) -> str:
    data = rooms(**options)
    parts = [data.train.inputs, *data.train.targets.values(), data.test.inputs]
    return hashlib.sha256(b"".join(part.numpy().tobytes() for part in parts)).hexdigest()


SMALL = {"train_scenes": 3, "validation_scenes": 1, "test_scenes": 2, "height": 24, "width": 32}


def test_another_process_renders_the_same_rooms() -> None:
    code = (
        "import hashlib\n"
        "from mtobal.data.rooms import rooms\n"
        f"data = rooms(**{SMALL!r})\n"
        "parts = [data.train.inputs, *data.train.targets.values(), data.test.inputs]\n"
        "print(hashlib.sha256(b''.join(part.numpy().tobytes() for part in parts)).hexdigest())"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == digest(SMALL)


def test_a_room_does_not_depend_on_how_many_others_there_are() -> None:
    few, more = rooms(**SMALL), rooms(**{**SMALL, "train_scenes": 5})
    assert torch.equal(few.train.inputs, more.train.inputs[:3])
    other = rooms(**SMALL, seed=1)
    assert not torch.equal(few.train.inputs, other.train.inputs)
    assert not torch.equal(few.train.inputs[0], few.test.inputs[0])


def test_the_form_is_that_of_nyuv2_and_most_classes_are_seen() -> None:
    data = rooms(train_scenes=40, validation_scenes=1, test_scenes=1)
    inputs, targets = data.train[torch.arange(40)]
    assert inputs.shape == (40, 3, 72, 96)
    assert inputs.dtype == targets["depth"].dtype == targets["normals"].dtype == torch.float32
    assert targets["segmentation"].dtype == torch.int64
    assert inputs.min() >= 0
    assert inputs.max() <= 1
    assert set(targets["segmentation"].unique().tolist()) == set(range(-1, 13))
    assert targets["depth"].shape == (40, 1, 72, 96)
    lengths = targets["normals"].norm(dim=1)
    assert torch.allclose(lengths[lengths > 0], torch.ones(()), atol=1e-5)
    assert torch.equal(lengths == 0, targets["depth"][:, 0] == 0)
    assert targets["depth"].max() < 12
    assert data.input_shape == (3, 72, 96)
    assert [task.name for task in data.tasks] == ["segmentation", "depth", "normals"]


def test_training_images_are_augmented_and_others_are_not() -> None:
    data = rooms(**SMALL)
    indices = torch.arange(3)
    assert not torch.equal(data.train.training_batch(indices, 0)[0], data.train[indices][0])
    assert data.test.augment is None
    plain = data_sets.load("rooms", **SMALL, augment=False)
    assert torch.equal(plain.train.training_batch(indices, 0)[0], data.train[indices][0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train_scenes": 0}, "train_scenes should be at least 1, not 0"),
        ({"height": -1}, "height should be at least 1"),
        ({"seed": -1}, "seed should be 0 or more"),
        ({"scenes": 3}, "data set 'rooms' has no option 'scenes'"),
    ],
)
def test_wrong_options_are_named(options: dict[str, int], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        data_sets.load("rooms", **options)
