"""QM9: the published file, graphs of a batch, standardised targets, the prepared file, and broken ones."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from data_files import full_disk, molecules
from mtobal.data import load, prepare, training_loader
from mtobal.data import qm9 as module
from mtobal.data.inspection import find_problems
from mtobal.data.qm9 import TARGETS, Molecules, check_qm9, qm9
from mtobal.errors import UsageError

NUMBER = 40
MOLECULES = molecules(NUMBER)
SPLIT = {"validation_molecules": 8, "test_molecules": 6}


@pytest.fixture
def published(tmp_path: Path) -> Path:
    torch.save(MOLECULES, tmp_path / "qm9_v3.pt")
    return tmp_path


def silent(items: object, description: str, total: int) -> object:
    return items


def test_splits_are_disjoint_and_complete(published: Path) -> None:
    data = load("qm9", path=str(published), **SPLIT)
    splits = (data.train, data.validation, data.test)
    assert [len(split) for split in splits] == [26, 8, 6]
    rows = torch.cat([split.rows for split in splits])  # type: ignore[attr-defined]
    assert sorted(rows.tolist()) == list(range(NUMBER))
    other = qm9(path=str(published), seed=1, **SPLIT)
    assert not torch.equal(other.test.rows, data.test.rows)  # type: ignore[attr-defined]
    assert [task.name for task in data.tasks] == list(TARGETS)


def test_a_batch_is_one_graph_of_all_pairs_of_atoms(published: Path) -> None:
    data = qm9(path=str(published), **SPLIT)
    rows = torch.tensor([3, 0, 5])
    graph, _ = data.train[rows]
    assert isinstance(graph, Molecules)
    chosen = [MOLECULES[row] for row in data.train.rows[rows].tolist()]  # type: ignore[attr-defined]
    counts = [len(each["x"]) for each in chosen]  # type: ignore[arg-type]
    assert torch.equal(graph.nodes, torch.cat([each["x"] for each in chosen]))  # type: ignore[misc]
    assert graph.molecule.tolist() == [i for i, count in enumerate(counts) for _ in range(count)]
    assert graph.edges.shape[1] == len(graph.edge_features) == sum(count * (count - 1) for count in counts)
    first, second = graph.edges
    assert torch.equal(graph.molecule[first], graph.molecule[second])
    assert (first != second).all()
    assert len({*zip(first.tolist(), second.tolist(), strict=True)}) == len(first)
    positions = torch.cat([each["pos"] for each in chosen])  # type: ignore[misc]
    assert torch.allclose(graph.edge_features[:, 4], (positions[first] - positions[second]).norm(dim=1))
    # Bonds link neighbours in the chain, and others have none.
    bonded = graph.edge_features[:, :4].sum(dim=1)
    assert torch.equal(bonded == 1, (first - second).abs() == 1)
    starts = torch.tensor([0, *counts]).cumsum(0)[graph.molecule[first]]
    kinds = (torch.minimum(first, second) - starts) % 4
    assert torch.equal(graph.edge_features[bonded == 1, :4].argmax(dim=1), kinds[bonded == 1])


def test_one_molecule(published: Path) -> None:
    graph, targets = qm9(path=str(published), **SPLIT).train[0]
    assert isinstance(graph, Molecules)
    assert (graph.molecule == 0).all()
    assert {tuple(target.shape) for target in targets.values()} == {(1,)}


def test_targets_are_standardised_by_the_training_molecules_alone(published: Path) -> None:
    data = qm9(path=str(published), **SPLIT)
    properties = torch.cat([each["y"] for each in MOLECULES])  # type: ignore[misc]
    train, test = data.train, data.test
    for task, column in zip(data.tasks, TARGETS.values(), strict=True):
        published_values = properties[:, column]
        mean, deviation = (f(published_values[train.rows]) for f in (torch.mean, torch.std))  # type: ignore[attr-defined]
        for split in (train, test):
            found = split.targets[task.name][:, 0] * deviation + mean  # type: ignore[attr-defined]
            assert torch.allclose(found, published_values[split.rows], atol=1e-4)  # type: ignore[attr-defined]
        thousand = 1000 if task.name in {"homo", "lumo", "zpve", "U0", "U", "H", "G"} else 1
        metric = task.metrics()["absolute_error"]
        metric.update(torch.zeros(6, 1), test.targets[task.name])  # type: ignore[attr-defined]
        expected = thousand * (published_values[test.rows] - mean).abs().mean()  # type: ignore[attr-defined]
        assert float(metric.compute()) == pytest.approx(float(expected), rel=1e-4)


def test_batches_are_loaded(published: Path) -> None:
    data = qm9(path=str(published), **SPLIT)
    batches = list(training_loader(data.train, batch_size=10, seed=0))
    assert [int(graph.molecule.max()) + 1 for graph, _ in batches] == [10, 10, 6]
    assert all(targets["mu"].shape == (int(graph.molecule.max()) + 1, 1) for graph, targets in batches)


def test_the_prepared_file_holds_the_same(published: Path, tmp_path: Path) -> None:
    before = qm9(path=str(published), **SPLIT)
    told = prepare("qm9", published, tmp_path / "out", silent)  # type: ignore[arg-type]
    assert told == f"{NUMBER} molecules converted, in {tmp_path / 'out' / 'qm9.pt'}"
    after = qm9(path=str(tmp_path / "out"), **SPLIT)
    for one, other in ((before.train, after.train), (before.test, after.test)):
        rows = torch.arange(len(one))
        for part, part_ in zip(one[rows][0], other[rows][0], strict=True):
            assert torch.equal(part, part_)
        for name in TARGETS:
            assert torch.equal(one[rows][1][name], other[rows][1][name])
    # Beside the published file, it is the one that is read.
    prepare("qm9", published / "qm9_v3.pt", published / "qm9_v3.pt", silent)  # type: ignore[arg-type]
    (published / "qm9_v3.pt").write_bytes(b"")
    assert len(qm9(path=str(published), **SPLIT).train) == 26


def test_a_full_disk_is_told_and_leaves_what_was_there(published: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "qm9.pt").write_bytes(b"from before")
    with full_disk(), pytest.raises(UsageError, match=r"out/qm9\.pt: cannot be written: File too large\."):
        prepare("qm9", published, tmp_path / "out", silent)  # type: ignore[arg-type]
    assert (tmp_path / "out" / "qm9.pt").read_bytes() == b"from before"


def test_a_file_in_the_older_format_of_torch(published: Path, tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    torch.save(MOLECULES, tmp_path / "old" / "qm9_v3.pt", _use_new_zipfile_serialization=False)
    one, other = (qm9(path=str(path), **SPLIT).test[0][0] for path in (published, tmp_path / "old"))
    assert all(torch.equal(part, part_) for part, part_ in zip(one, other, strict=True))


def test_the_check_expects_all_molecules(published: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(find_problems(check_qm9(published))) == [f"{published}: expected 130831 samples, found 40."]
    monkeypatch.setattr(module, "COUNT", NUMBER)
    assert list(find_problems(check_qm9(published))) == [None]


def changed(**changes: object) -> list[dict[str, object]]:
    return [*MOLECULES[:3], {**MOLECULES[3], **changes}, *MOLECULES[4:]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "expected a list of molecules, found dict"),
        ([], "expected a list of molecules, found list"),
        ([*MOLECULES[:2], "water"], r"molecule 2: expected x \(atoms, 11\)"),
        (changed(x=torch.zeros(6, 10)), r"molecule 3: expected x \(atoms, 11\)"),
        (changed(x=None), "molecule 3: expected x"),
        (changed(x=torch.zeros(())), "molecule 3: expected x"),
        (changed(pos=torch.zeros(5, 3)), "molecule 3: expected x"),
        (changed(y=torch.zeros(19)), "molecule 3: expected x"),
        (changed(edge_index=torch.zeros(2, 10)), "expected bonds and counts as int64"),
        (changed(edge_index=torch.full((2, 10), 6)), "expected bonds between atoms of one molecule"),
        (changed(edge_index=torch.full((2, 10), -1)), "expected bonds between atoms of one molecule"),
        (changed(pos=torch.full((6, 3), torch.nan)), "expected finite numbers"),
        (changed(x=torch.zeros(101, 11), pos=torch.zeros(101, 3)), "expected molecules of 1 to 100 atoms"),
        ([MOLECULES[0]] * NUMBER, "have the same mu"),
    ],
)
def test_what_is_wrong_with_the_file_is_told(content: object, message: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "qm9_v3.pt")
    with pytest.raises(UsageError, match=message) as caught:
        qm9(path=str(tmp_path), **SPLIT)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_prepared_file_is_not_trusted_either(published: Path) -> None:
    prepare("qm9", published, published, silent)  # type: ignore[arg-type]
    whole = torch.load(published / "qm9.pt", weights_only=True)
    for name, value, message in (
        ("nodes", None, "expected the tensors atom_counts"),
        ("nodes", whole["nodes"][:-1], "expected tensors for 180 atoms"),
        ("nodes", whole["nodes"].to_sparse(), "expected bonds and counts as int64 and all else as float32"),
        ("nodes", whole["nodes"].to("meta"), "expected bonds and counts as int64 and all else as float32"),
        ("positions", whole["positions"].double(), "all else as float32, found others"),
        ("bonds", whole["bonds"] + 1, "expected bonds between atoms"),
        ("bond_counts", whole["bond_counts"].sum() * (torch.arange(NUMBER) == 0), "found more"),
        ("atom_counts", whole["atom_counts"] * 10**9, "expected molecules of 1 to 100 atoms"),
        ("bond_counts", whole["bond_counts"][1:], "expected as many molecules in every tensor"),
    ):
        torch.save({**whole, name: value}, published / "qm9.pt")
        with pytest.raises(UsageError, match=message):
            qm9(path=str(published), **SPLIT)


class Command:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.path),)


def test_a_hostile_file_does_nothing(tmp_path: Path) -> None:
    for legacy in (False, True):
        torch.save(
            [{"x": Command(tmp_path / "made")}],
            tmp_path / "qm9_v3.pt",
            _use_new_zipfile_serialization=not legacy,
        )
        with pytest.raises(UsageError, match=r"qm9_v3\.pt: expected a file of tensors"):
            qm9(path=str(tmp_path))
        assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("legacy", [False, True])
def test_cuts_are_told(legacy: bool, tmp_path: Path) -> None:
    path = tmp_path / "qm9_v3.pt"
    torch.save(MOLECULES[:4], path, _use_new_zipfile_serialization=not legacy)
    whole = path.read_bytes()
    for length in range(0, len(whole) - 1, max(1, len(whole) // 150)):
        path.write_bytes(whole[:length])
        with pytest.raises(UsageError, match=r"qm9_v3\.pt: expected a file of tensors") as caught:
            qm9(path=str(tmp_path))
        assert "\n" not in str(caught.value)


def test_missing_files_and_wrong_numbers_are_told(published: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nowhere: expected a file, found nothing"):
        qm9(path=str(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"empty: expected qm9\.pt or qm9_v3\.pt in it, found neither"):
        qm9(path=str(tmp_path / "empty"))
    with pytest.raises(UsageError, match="leave at least 2 of the 40 molecules, not 10000 and 10000"):
        qm9(path=str(published))
