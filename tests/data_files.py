"""Small data sets on disk, written in the format in which the large ones are published."""

from __future__ import annotations

import io
import resource
import signal
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
import torch
from PIL import Image
from scipy.io import savemat


@contextmanager
def full_disk() -> Iterator[None]:
    """Let no file grow beyond a few hundred bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (500, limits[1]))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


def png(values: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(values).save(stream, format="PNG")
    return stream.getvalue()


def write_tar(path: Path, members: Mapping[str, bytes]) -> None:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def write_scenes(root: Path, counts: Mapping[str, int], size: tuple[int, int], label: str, normals: bool) -> None:
    """Write the layout of MTAN; the value of every pixel depends on split, number and map."""
    rng = np.random.default_rng(0)
    for split, count in counts.items():
        for number in range(count):
            directions = rng.normal(size=(*size, 3))
            maps = {
                "image": rng.random((*size, 3)),
                label: rng.integers(-1, 7, size).astype(np.float64),
                "depth": rng.uniform(0.5, 10, (*size, 1)).astype(np.float32),
            }
            maps["depth"][0] = 0
            if normals:
                maps["normal"] = directions / np.linalg.norm(directions, axis=2, keepdims=True)
                maps["normal"][0] = 0
            for name, values in maps.items():
                folder = root / split / name
                folder.mkdir(parents=True, exist_ok=True)
                np.save(folder / f"{number}.npy", values)


NYU_IMAGES = 6
NYU_TRAIN, NYU_TEST = (2, 4, 5, 6), (1, 3)
"""The split, with images counted from 1."""


def nyu_maps() -> dict[str, np.ndarray]:
    """Return images, depths and labels of a room with a wall ahead and a floor, in ordinary orientation."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:480, :640]
    wall = np.full((480, 640), 3.0)
    floor = 0.6 * 519.4696 / np.maximum(rows - 253.7362, 1e-3)
    depth = np.where(rows > 253.7362, np.minimum(wall, floor), wall)
    images = rng.integers(0, 256, (NYU_IMAGES, 480, 640, 3), dtype=np.uint8)
    images[:, :, :, 0] = (columns * 255 // 639).astype(np.uint8)
    labels = np.where(floor < 3.0, 11, 21) * np.ones((NYU_IMAGES, 1, 1), dtype=int)
    labels[:, :48, :64] = 0
    labels[:, :, 320:] = np.arange(NYU_IMAGES)[:, None, None] + 100
    return {
        "images": images,
        "depths": np.stack([depth + 0.1 * i for i in range(NYU_IMAGES)]).astype(np.float32),
        "labels": labels.astype(np.uint16),
    }


def write_nyu(folder: Path) -> None:
    """Write `nyu_depth_v2_labeled.mat`, as MATLAB 7.3 does, and `splits.mat`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "nyu_depth_v2_labeled.mat"
    maps = nyu_maps()
    with h5py.File(path, "w", userblock_size=512) as file:
        # MATLAB's first dimension varies fastest, so HDF5 sees them in reverse.
        file["images"] = maps["images"].transpose(0, 3, 2, 1)
        file["depths"] = maps["depths"].transpose(0, 2, 1)
        file["labels"] = maps["labels"].transpose(0, 2, 1)
        names = [np.array([[ord(letter)] for letter in name], dtype=np.uint16) for name in ("wall", "floor")]
        references = file.create_dataset("names", (1, 2), dtype=h5py.ref_dtype)
        for i, name in enumerate(names):
            references[0, i] = file.create_dataset(f"#refs#/{i}", data=name).ref
    header = b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\x00\x02IM"
    with path.open("r+b") as file:
        file.write(header)
    columns = {"trainNdxs": np.array(NYU_TRAIN)[:, None], "testNdxs": np.array(NYU_TEST)[:, None]}
    savemat(folder / "splits.mat", {name: column.astype(np.uint16) for name, column in columns.items()})


def nyu_normals() -> dict[str, bytes]:
    """Return the files of the archive of normals: one direction an image, masked in the upper left corner."""
    members = {}
    for index in range(NYU_IMAGES):
        pixels = np.full((480, 640, 3), (127, 127 + index, 250), dtype=np.uint8)
        mask = np.full((480, 640), 255, dtype=np.uint8)
        mask[:100, :100] = 0
        members[f"normals_gt/normals/{index:04d}.png"] = png(pixels)
        members[f"normals_gt/masks/{index:04d}.png"] = png(mask)
    return members


def python2_pickle(value: object) -> bytes:
    """Pickle numbers, texts, lists, dictionaries and arrays as Python 2 and its NumPy did, in protocol 2."""
    return b"\x80\x02" + _python2(value) + b"."


def _python2(value: object) -> bytes:
    if isinstance(value, bool):
        return b"\x88" if value else b"\x89"
    if isinstance(value, int):
        return b"J" + value.to_bytes(4, "little", signed=True)
    if isinstance(value, str):
        return _python2(value.encode())
    if isinstance(value, bytes):
        return b"T" + len(value).to_bytes(4, "little") + value
    if isinstance(value, tuple):
        return b"(" + b"".join(map(_python2, value)) + b"t"
    if isinstance(value, list):
        return b"](" + b"".join(map(_python2, value)) + b"e"
    if isinstance(value, dict):
        return b"}(" + b"".join(_python2(key) + _python2(item) for key, item in value.items()) + b"u"
    assert isinstance(value, np.ndarray)
    empty = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n" + _python2((0,)) + b"U\x01b\x87R"
    nothing = b"N" * 3
    order = "|" if value.dtype.itemsize == 1 else "<"
    dtype = b"cnumpy\ndtype\n" + _python2(value.dtype.str[1:]) + b"K\x00K\x01\x87R"
    dtype += b"(K\x03" + _python2(order) + nothing + _python2(-1) * 2 + b"K\x00tb"
    return empty + b"(K\x01" + _python2(value.shape) + dtype + b"\x89" + _python2(value.tobytes()) + b"tb"


CIFAR_TRAIN, CIFAR_TEST = 600, 200


def cifar_files() -> dict[str, bytes]:
    """Return the three files of the archive, with few images; a pixel's value tells its class and channel."""
    coarse_of = np.random.default_rng(0).permutation(np.repeat(np.arange(20), 5))
    files = {}
    for split, number in (("train", CIFAR_TRAIN), ("test", CIFAR_TEST)):
        fine = np.arange(number) % 100
        images = (fine[:, None, None] + np.array([0, 50, 100])[:, None]).repeat(1024, axis=2).astype(np.uint8)
        images[:, 0, :32] = np.arange(32)  # the first row of red tells the column
        files[split] = python2_pickle(
            {
                "data": images.reshape(number, 3072),
                "fine_labels": fine.tolist(),
                "coarse_labels": coarse_of[fine].tolist(),
                "filenames": [f"{i}.png" for i in range(number)],
                "batch_label": f"{split}ing batch 1 of 1",
            }
        )
    files["meta"] = python2_pickle(
        {
            "fine_label_names": [f"class_{i}" for i in range(100)],
            "coarse_label_names": [f"group_{i}" for i in range(20)],
        }
    )
    return files


def molecules(number: int) -> list[dict[str, object]]:
    """Return molecules as QM9 is published for PyTorch: chains of three to six atoms."""
    generator = torch.Generator().manual_seed(0)
    found: list[dict[str, object]] = []
    for index in range(number):
        atoms = 3 + index % 4
        chain = torch.arange(atoms - 1)
        pairs = torch.stack([torch.cat([chain, chain + 1]), torch.cat([chain + 1, chain])])
        kinds = torch.eye(4)[(chain % 4).repeat(2)]
        found.append(
            {
                "x": torch.rand(atoms, 11, generator=generator),
                "edge_index": pairs,
                "edge_attr": kinds,
                "y": torch.randn(1, 19, generator=generator) * torch.arange(1, 20),
                "pos": torch.randn(atoms, 3, generator=generator),
                "z": torch.full((atoms,), 6),
                "name": f"gdb_{index + 1}",
                "idx": torch.tensor([index]),
            }
        )
    return found


FACES = 8
ATTRIBUTES = [f"Attribute_{i}" for i in range(40)]
FACE_LABELS = np.random.default_rng(0).choice([-1, 1], (FACES, 40))
FACE_SPLITS = [0, 0, 0, 1, 1, 2, 2, 0]


def attribute_lines(labels: np.ndarray = FACE_LABELS) -> list[str]:
    """Return the lines of `list_attr_celeba.txt`."""
    rows = [f"{i + 1:06d}.jpg " + " ".join(f"{value:2d}" for value in row) for i, row in enumerate(labels)]
    return [str(len(rows)), " ".join(ATTRIBUTES) + " ", *rows]


def write_celeba(root: Path, published: bool = True) -> Path:
    """Write the lists and the faces of CelebA, each in its published folder or all in one."""
    folders = {name: root / name if published else root for name in ("Anno", "Eval", "Img")}
    (folders["Img"] / "img_align_celeba").mkdir(parents=True)
    for folder in folders.values():
        folder.mkdir(exist_ok=True)
    (folders["Anno"] / "list_attr_celeba.txt").write_text("\n".join(attribute_lines()) + "\n")
    lines = [f"{i + 1:06d}.jpg {split}\n" for i, split in enumerate(FACE_SPLITS)]
    (folders["Eval"] / "list_eval_partition.txt").write_text("".join(lines))
    for i in range(FACES):
        face = np.full((218, 178, 3), (10 * i, 100, 200), dtype=np.uint8)
        # What the file holds decides, not its name.
        (folders["Img"] / "img_align_celeba" / f"{i + 1:06d}.jpg").write_bytes(png(face))
    return root


OFFICE = {"amazon": (5, 3, 2), "dslr": (2, 2, 2), "webcam": (3, 2, 2)}
"""Pictures of training, validation and test, by task."""


def write_office(root: Path) -> Path:
    """Write pictures and lists of Office-31; the shade of a picture is its class."""
    for index, (task, counts) in enumerate(OFFICE.items()):
        for split, count in zip(("train", "val", "test"), counts, strict=True):
            lines = []
            for number in range(count):
                label = 10 * index + number
                file = f"{task}/images/back pack/{split}_{number:04d}.jpg"
                (root / file).parent.mkdir(parents=True, exist_ok=True)
                (root / file).write_bytes(png(np.full((30, 40, 3), label, dtype=np.uint8)))
                lines.append(f"{file} {label}\n")
            (root / f"{task}_{split}.txt").write_text("".join(lines))
    return root


def overlaid_pictures() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return what a pickle of Pareto MTL holds: images and labels, of training and of test."""
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (number, 36, 36), dtype=np.uint8) for number in (40, 10)]
    labels = [rng.integers(0, 10, (number, 2)) for number in (40, 10)]
    return images[0], labels[0], images[1], labels[1]
