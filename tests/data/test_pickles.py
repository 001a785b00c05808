"""Pickles are read without trusting them: arrays and lists come out, anything else is refused."""

from __future__ import annotations

import io
import os
import pickle
import random
from pathlib import Path

import numpy as np
import pytest

from data_files import python2_pickle
from mtobal.data.pickles import load_pickle
from mtobal.errors import UsageError

CONTENT = {
    "data": np.arange(12, dtype=np.uint8).reshape(3, 4),
    "weights": np.linspace(0, 1, 5, dtype=np.float32),
    "labels": [1, 2, -3],
    "name": "training batch",
}


def read(content: bytes) -> object:
    return load_pickle(io.BytesIO(content), len(content), "some/file")


def same(found: object) -> None:
    assert isinstance(found, dict)
    assert found.keys() == CONTENT.keys()
    for key, value in CONTENT.items():
        assert np.array_equal(found[key], value)
        if isinstance(value, np.ndarray):
            assert found[key].dtype == value.dtype
            assert found[key].flags.writeable


def test_python_2() -> None:
    assert pickle.loads(python2_pickle({"labels": [1, 2]})) == {"labels": [1, 2]}
    same(read(python2_pickle(CONTENT)))


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_python_3(protocol: int) -> None:
    same(read(pickle.dumps(CONTENT, protocol=protocol)))


def test_other_containers_and_orders() -> None:
    transposed = np.asfortranarray(np.arange(6, dtype=">i4").reshape(2, 3))
    first, second = read(pickle.dumps((transposed, [1]), protocol=4))  # type: ignore[misc]
    assert np.array_equal(first, transposed)
    assert second == [1]
    assert np.array_equal(read(pickle.dumps(transposed, protocol=5)), transposed)  # type: ignore[arg-type]
    assert np.array_equal(read(pickle.dumps(np.array([True, False]))), [True, False])  # type: ignore[arg-type]


class Command:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", range(6))
def test_a_command_is_not_run(protocol: int, tmp_path: Path) -> None:
    content = pickle.dumps({"data": Command(tmp_path / "made")}, protocol=protocol)
    with pytest.raises(UsageError, match=r"some/file: .* it asks for posix\.mkdir, which no array needs"):
        read(content)
    assert not (tmp_path / "made").exists()
    pickle.loads(content)
    assert (tmp_path / "made").exists(), "the pickle does nothing even where it may"


@pytest.mark.parametrize(
    "content",
    [
        b"cbuiltins\neval\n(S'1'\ntR.",
        b"cnumpy\nload\n.",
        b"\x80\x04\x8c\x08builtins\x8c\x04exec\x93.",
        b"cnumpy.core.multiarray\n_reconstruct.__init__\n.",
        b"(inumpy\nsave\n.",
        b"Pid\n.",
        b"\x80\x02\x82\x01.",
        b"\x80\x05\x96" + b"\xff" * 6 + b"\x00\x00.",
    ],
)
def test_nothing_but_arrays_is_known_by_name(content: bytes) -> None:
    with pytest.raises(UsageError, match="some/file: expected a pickle of arrays and lists"):
        read(content)


@pytest.mark.parametrize(
    "array",
    [np.array(["text"]), np.array([1j]), np.array([(1, 2)], dtype="i4,i4"), np.array(["2020"], dtype="M8[D]")],
)
def test_arrays_of_other_things_are_refused(array: np.ndarray) -> None:
    for protocol in (2, 4, 5):
        with pytest.raises(UsageError, match="some/file"):
            read(pickle.dumps(array, protocol=protocol))


def test_an_array_of_objects_is_refused() -> None:
    with pytest.raises(UsageError, match="some/file"):
        read(pickle.dumps(np.array([{}, []], dtype=object)))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"\x03\x00\x00\x00J\x04\x00\x00\x00", b"\x03\x00\x00\x00J\x05\x00\x00\x00"),
        (b"\x03\x00\x00\x00J\x04\x00\x00\x00", b"\xff\xff\xff\x7fJ\xff\xff\xff\x7f"),
        (b"\x03\x00\x00\x00J\x04\x00\x00\x00", b"\xfd\xff\xff\xffJ\xfc\xff\xff\xff"),
        (b"T\x0c\x00\x00\x00", b"T\xff\xff\xff\x7f"),
        (b"T\x0c\x00\x00\x00", b"T\xff\xff\xff\xff"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(old: bytes, new: bytes) -> None:
    content = python2_pickle(CONTENT["data"])
    assert old in content
    with pytest.raises(UsageError, match="some/file"):
        read(content.replace(old, new))


def test_a_place_in_memory_far_away_costs_nothing() -> None:
    assert read(b"\x80\x02]r\xff\xff\xff\x7f(K\x01e.") == [1]


def test_every_cut_is_told() -> None:
    content = python2_pickle(CONTENT)
    for length in range(len(content)):
        with pytest.raises(UsageError, match="some/file"):
            read(content[:length])


@pytest.mark.parametrize("writer", [python2_pickle, lambda value: pickle.dumps(value, protocol=5)])
def test_damaged_bytes_are_read_or_told(writer: object) -> None:
    content = bytearray(writer(CONTENT))  # type: ignore[operator]
    rng = random.Random(0)
    told = []
    for _ in range(2000):
        damaged = bytearray(content)
        for _ in range(rng.randint(1, 3)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        try:
            read(bytes(damaged))
        except UsageError as error:
            told.append(str(error))
    assert len(told) > 500
    assert not any("\n" in message for message in told)
