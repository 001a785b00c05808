"""Samples a second of every loader, against plain NumPy reading of the same files.

    python benchmarks/loaders.py            # the table of docs/data.md, two minutes or so
    python benchmarks/loaders.py --quick    # fewer files

Every data set is written to a temporary folder first, in its original format and with images of the original
size, but fewer of them. "Plain" reads the same files in a loop of a few lines, checks nothing and gives batches of
NumPy arrays in the shape and type of the loader's; pictures it decodes with Pillow, and data sets that fit into
memory it indexes there. The loaders read the way a training does: shuffled, with their checks, in batches of
tensors, without augmentation. Both take turns on one thread, and the table shows medians of samples per second of
processor time.
"""

from __future__ import annotations

import argparse
import hashlib
import pickle
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from mtobal import data
from mtobal.data import MultiTaskDataset, cifar_mtl, prepare, training_loader
from mtobal.data.office import MEAN, STD

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from data_files import python2_pickle

Plain = Callable[[], Iterator[Any]]
"""Goes through the samples, or batches of them, as NumPy reads them."""

RNG = np.random.default_rng(0)


def write_scenes(root: Path, counts: dict[str, int], size: tuple[int, int], classes: int, normals: bool) -> None:
    """Write the layout of MTAN, in single precision as the prepared NYUv2."""
    for split, count in counts.items():
        for number in range(count):
            direction = RNG.normal(size=(*size, 3)).astype(np.float32)
            maps = {
                "image": RNG.random((*size, 3), dtype=np.float32),
                "label": RNG.integers(-1, classes, size).astype(np.float32),
                "depth": RNG.uniform(0.5, 10, (*size, 1)).astype(np.float32),
                **({"normal": direction / np.linalg.norm(direction, axis=2, keepdims=True)} if normals else {}),
            }
            for name, values in maps.items():
                (root / split / name).mkdir(parents=True, exist_ok=True)
                np.save(root / split / name / f"{number}.npy", values)


def plain_scenes(root: Path, count: int, normals: bool, batch_size: int) -> Plain:
    def read() -> Iterator[Any]:
        for start in range(0, count, batch_size):
            batch = {}
            for name in ("image", "label", "depth", *(("normal",) if normals else ())):
                files = [root / "train" / name / f"{i}.npy" for i in range(start, min(start + batch_size, count))]
                values = np.stack([np.load(file) for file in files])
                planes = values.astype(np.int64) if name == "label" else values.transpose(0, 3, 1, 2)
                batch[name] = np.ascontiguousarray(planes)
            yield batch

    return read


def plain_pictures(files: list[Path], size: int, batch_size: int, normalised: bool) -> Plain:
    def read() -> Iterator[Any]:
        for start in range(0, len(files), batch_size):
            batch = []
            for file in files[start : start + batch_size]:
                with Image.open(file) as image:
                    image.draft("RGB", (2 * size, 2 * size))
                    batch.append(np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR)))
            planes = np.stack(batch).transpose(0, 3, 1, 2).astype(np.float32) / 255
            yield (planes - MEAN.numpy()) / STD.numpy() if normalised else planes

    return read


def plain_batches(inputs: np.ndarray, batch_size: int, normalised: bool) -> Plain:
    mean, std = (values.view(3, 1, 1).numpy() for values in (cifar_mtl.MEAN, cifar_mtl.STD))

    def read() -> Iterator[Any]:
        order = RNG.permutation(len(inputs))
        for start in range(0, len(order), batch_size):
            batch = inputs[order[start : start + batch_size]].astype(np.float32) / 255
            yield (batch - mean) / std if normalised else batch

    return read


def write_pictures(folder: Path, names: list[str], size: tuple[int, int]) -> list[Path]:
    """Write photographs: smooth, as noise would take longer to decode than any."""
    files = []
    for name in names:
        small = Image.fromarray(RNG.integers(0, 256, (12, 12, 3), dtype=np.uint8))
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        small.resize(size, Image.Resampling.BICUBIC).save(folder / name, format="JPEG", quality=90)
        files.append(folder / name)
    return files


def scenes(
    name: str, root: Path, count: int, size: tuple[int, int], classes: int, batch_size: int
) -> tuple[MultiTaskDataset, Plain, int]:
    normals = name == "nyuv2"
    write_scenes(root, {"train": count, "val": 1}, size, classes, normals)
    options = {"path": str(root), "augment": False, "validation_share": 0}
    return data.load(name, **options).train, plain_scenes(root, count, normals, batch_size), batch_size


def nyuv2(root: Path, count: int) -> tuple[MultiTaskDataset, Plain, int]:
    return scenes("nyuv2", root, count, (288, 384), 13, 8)


def cityscapes(root: Path, count: int) -> tuple[MultiTaskDataset, Plain, int]:
    return scenes("cityscapes", root, count, (128, 256), 7, 8)


def celeba(root: Path, count: int) -> tuple[MultiTaskDataset, Plain, int]:
    names = [f"{i + 1:06d}.jpg" for i in range(count + 2)]
    files = write_pictures(root / "img_align_celeba", names, (178, 218))
    labels = RNG.choice([-1, 1], (len(names), 40))
    rows = [f"{name} {' '.join(map(str, row))}" for name, row in zip(names, labels, strict=True)]
    header = [str(len(names)), " ".join(f"Attribute_{i}" for i in range(40))]
    (root / "list_attr_celeba.txt").write_text("\n".join([*header, *rows]) + "\n")
    splits = [0] * count + [1, 2]
    lines = [f"{name} {split}\n" for name, split in zip(names, splits, strict=True)]
    (root / "list_eval_partition.txt").write_text("".join(lines))
    return data.load("celeba", path=str(root)).train, plain_pictures(files[:count], 64, 256, normalised=False), 256


def office(root: Path, count: int) -> tuple[MultiTaskDataset, Plain, int]:
    files = []
    for task in ("amazon", "dslr", "webcam"):
        names = [f"{task}/images/mug/frame_{i:04d}.jpg" for i in range(count // 3)]
        files += write_pictures(root, names, (300, 300))
        for split in ("train", "val", "test"):
            (root / f"{task}_{split}.txt").write_text(
                "".join(f"{name} {i % 31}\n" for i, name in enumerate(names))
            )
    return data.load("office", path=str(root)).train, plain_pictures(files, 224, 32, normalised=True), 32


def cifar(root: Path, count: int) -> tuple[MultiTaskDataset, Plain, int]:
    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)
    images = RNG.integers(0, 256, (count, 3072), dtype=np.uint8)
    fine = np.arange(count) % 100
    split = {"data": images, "fine_labels": fine.tolist(), "coarse_labels": (fine // 5).tolist()}
    meta = {"coarse_label_names": [f"group_{i}" for i in range(20)]}
    for name, content in (("train", split), ("test", split), ("meta", meta)):
        (folder / name).write_bytes(python2_pickle(content))
        cifar_mtl.MD5[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()
    train = data.load("cifar_mtl", path=str(root), validation_share=0).train
    return train, plain_batches(images.reshape(-1, 3, 32, 32), 128, normalised=True), 128


def multi_mnist(root: Path, count: int) -> tuple[MultiTaskDataset, Plain, int]:
    images = RNG.integers(0, 256, (count, 36, 36), dtype=np.uint8)
    labels = RNG.integers(0, 10, (count, 2))
    root.mkdir(parents=True)
    (root / "multi_mnist.pickle").write_bytes(pickle.dumps((images, labels, images[:10], labels[:10])))
    train = data.load("multi_mnist", path=str(root), validation_share=0).train
    return train, plain_batches(images[:, None], 256, normalised=False), 256


def molecule(atoms: int) -> dict[str, torch.Tensor]:
    chain = np.arange(atoms - 1)
    arrays = {
        "x": RNG.random((atoms, 11)),
        "pos": RNG.normal(size=(atoms, 3)),
        "edge_index": np.stack([np.concatenate([chain, chain + 1]), np.concatenate([chain + 1, chain])]),
        "edge_attr": np.eye(4)[np.tile(chain % 4, 2)],
        "y": RNG.normal(size=(1, 19)),
    }
    numbers = {name: torch.from_numpy(values) for name, values in arrays.items()}
    return {name: values if name == "edge_index" else values.float() for name, values in numbers.items()}


def qm9(root: Path, count: int) -> tuple[MultiTaskDataset, Plain, int]:
    root.mkdir(parents=True)
    published = [molecule(atoms=14 + i % 9) for i in range(count + 2)]  # 18 on average, as in QM9
    torch.save(published, root / "qm9_v3.pt")
    prepare("qm9", root, root, lambda items, description, total: items)
    train = data.load("qm9", path=str(root), validation_molecules=1, test_molecules=1).train
    raw = [{name: values.numpy() for name, values in each.items()} for each in published]

    def read() -> Iterator[Any]:
        for start in range(0, count, 120):
            nodes, features = [], []
            for each in raw[start : start + 120]:
                position = each["pos"]
                first, second = np.nonzero(~np.eye(len(position), dtype=bool))
                types = np.zeros((len(position), len(position), 4), dtype=np.float32)
                types[tuple(each["edge_index"])] = each["edge_attr"]
                distance = np.linalg.norm(position[first] - position[second], axis=1, keepdims=True)
                nodes.append(each["x"])
                features.append(np.concatenate([types[first, second], distance], axis=1))
            yield np.concatenate(nodes), np.concatenate(features)

    return train, read, 120


CASES: dict[str, tuple[Callable[[Path, int], tuple[MultiTaskDataset, Plain, int]], int]] = {
    "nyuv2": (nyuv2, 80),
    "cityscapes": (cityscapes, 160),
    "celeba": (celeba, 512),
    "office": (office, 768),
    "cifar_mtl": (cifar, 10_000),
    "multi_mnist": (multi_mnist, 10_000),
    "qm9": (qm9, 1200),
}
"""How each is written, and how many samples."""


def rate(number: int, batches: Iterable[Any]) -> float:
    """Return samples per second of processor time."""
    start = time.process_time()
    for _ in batches:
        pass
    return number / (time.process_time() - start)


def measure(name: str, root: Path, quick: bool) -> str:
    write, count = CASES[name]
    train, plain, batch_size = write(root, count // 8 if quick else count)
    loader = training_loader(train, batch_size, seed=0)
    found = [(rate(len(train), loader), rate(len(train), plain())) for _ in range(3 if quick else 7)]
    found = found[1:]  # the first one fills caches
    ours, theirs = (statistics.median(rates) for rates in zip(*found, strict=True))
    ratio = statistics.median(one / other for one, other in found)
    return f"| `{name}` | {batch_size} | {ours:,.0f} | {theirs:,.0f} | {ratio:.2f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer files and repetitions")
    parser.add_argument("--only", choices=CASES, help="one data set")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| data set | batch | loader [samples/s] | plain NumPy [samples/s] | ratio |\n|---|---|---|---|---|")
    for name in [options.only] if options.only else CASES:
        with tempfile.TemporaryDirectory() as folder:
            print(measure(name, Path(folder) / name, options.quick), flush=True)


if __name__ == "__main__":
    main()
