"""QM9: eleven properties of 130,831 small molecules, from the file that PyTorch Geometric publishes."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mtobal.data.files import open_file, refusals_of
from mtobal.data.inspection import Check, expect_count
from mtobal.data.multitask import Batch, MultiTaskData, MultiTaskDataset
from mtobal.data.seeding import derive_seed
from mtobal.data.tracking import Track
from mtobal.errors import UsageError
from mtobal.models.tensor_files import load_tensors
from mtobal.tasks import Regression

FILE = "qm9_v3.pt"
PREPARED = "qm9.pt"
COUNT = 130_831
TARGETS = {
    "mu": 0,
    "alpha": 1,
    "homo": 2,
    "lumo": 3,
    "r2": 5,
    "zpve": 6,
    "U0": 12,
    "U": 13,
    "H": 14,
    "G": 15,
    "Cv": 11,
}
"""The columns of the published targets; the energies are those of atomisation."""

MILLI = ("homo", "lumo", "zpve", "U0", "U", "H", "G")
"""Targets in electronvolts, whose errors are told in thousandths of them."""

NUM_PROPERTIES, NODE_FEATURES, BOND_TYPES = 19, 11, 4
MAX_ATOMS = 100
"""Three times as many as the largest has."""


class Molecules(NamedTuple):
    """Molecules as one graph without edges between them; every pair of atoms of a molecule is an edge.

    Attributes
    ----------
    nodes : Tensor of shape (atoms, 11)
        Features of the atoms.
    edges : Tensor of shape (2, E)
        From which atom to which; both directions are there.
    edge_features : Tensor of shape (E, 5)
        The type of the bond as one of four, all zero for none, and the distance in angstrom.
    molecule : Tensor of shape (atoms,)
        To which molecule of the batch each atom belongs.
    """

    nodes: Tensor
    edges: Tensor
    edge_features: Tensor
    molecule: Tensor


@dataclass(frozen=True)
class Table:
    """All molecules, one after the other: a few large tensors are read at once, a million small ones are not.

    Attributes
    ----------
    nodes : Tensor of shape (atoms, 11)
        Features of all atoms.
    positions : Tensor of shape (atoms, 3)
        In angstrom.
    bonds : Tensor of shape (2, bonds)
        Atoms, counted within their molecule.
    bond_types : Tensor of shape (bonds, 4)
        One of four.
    properties : Tensor of shape (N, 19)
        As published.
    atom_counts, bond_counts : Tensor of shape (N,)
        How many of the atoms and of the bonds belong to each molecule.
    """

    nodes: Tensor
    positions: Tensor
    bonds: Tensor
    bond_types: Tensor
    properties: Tensor
    atom_counts: Tensor
    bond_counts: Tensor

    def __len__(self) -> int:
        return len(self.properties)

    @classmethod
    def collect(cls, molecules: Sequence[Mapping[str, Tensor]]) -> Table:
        """Lay published molecules one after the other."""
        return cls(
            nodes=torch.cat([each["x"] for each in molecules]),
            positions=torch.cat([each["pos"] for each in molecules]),
            bonds=torch.cat([each["edge_index"] for each in molecules], dim=1),
            bond_types=torch.cat([each["edge_attr"] for each in molecules]),
            properties=torch.cat([each["y"] for each in molecules]),
            atom_counts=torch.tensor([len(each["x"]) for each in molecules]),
            bond_counts=torch.tensor([len(each["edge_attr"]) for each in molecules]),
        )


class MoleculeDataset(MultiTaskDataset):
    """Some of the molecules of a table.

    Parameters
    ----------
    table : Table
        All of them.
    rows : Tensor of shape (N,)
        Which.
    targets : dict from str to Tensor of shape (N, 1)
        Their properties by task.
    """

    def __init__(self, table: Table, rows: Tensor, targets: dict[str, Tensor]) -> None:
        self.rows = rows
        self.targets = targets
        self._table = table
        self._first_atoms = table.atom_counts.cumsum(0) - table.atom_counts
        self._first_bonds = table.bond_counts.cumsum(0) - table.bond_counts

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int | Tensor) -> Batch:
        """Return one molecule, or the batch of those whose indices a tensor holds, as `Molecules`."""
        return self._graphs(self.rows[index].reshape(-1)), {
            task: values[index] for task, values in self.targets.items()
        }

    def _graphs(self, rows: Tensor) -> Molecules:
        """Lay out the complete graphs of molecules, all of them at once: a loop would take most of a step."""
        table = self._table
        counts = table.atom_counts[rows]
        starts = counts.cumsum(0) - counts
        molecule, within = _enumerated(counts)
        atoms = self._first_atoms[rows][molecule] + within

        # All pairs of atoms of a molecule, in its n x n table: entry (i, j) is the place i n + j.
        owner, place = _enumerated(counts**2)
        first, second = place // counts[owner], place % counts[owner]
        types = torch.zeros(len(owner), BOND_TYPES)
        bonded, bond = _enumerated(table.bond_counts[rows])
        bonds = self._first_bonds[rows][bonded] + bond
        sources, targets = table.bonds[:, bonds]
        tables = (counts**2).cumsum(0) - counts**2
        types[tables[bonded] + sources * counts[bonded] + targets] = table.bond_types[bonds]

        pairs = first != second
        edges = torch.stack([first, second])[:, pairs] + starts[owner[pairs]]
        positions = table.positions[atoms]
        distance = (positions[edges[0]] - positions[edges[1]]).norm(dim=1, keepdim=True)
        return Molecules(table.nodes[atoms], edges, torch.cat([types[pairs], distance], dim=1), molecule)


def _enumerated(counts: Tensor) -> tuple[Tensor, Tensor]:
    """Return, for so many things of each owner, the owner of each and its number among the owner's."""
    owner = torch.arange(len(counts)).repeat_interleave(counts)
    return owner, torch.arange(len(owner)) - (counts.cumsum(0) - counts)[owner]


def qm9(
    *, path: str, validation_molecules: int = 10_000, test_molecules: int = 10_000, seed: int = 0
) -> MultiTaskData:
    """Load QM9; the tasks are mu, alpha, homo, lumo, r2, zpve, U0, U, H, G and Cv.

    Targets are standardised by mean and deviation of the training molecules; metrics are told in the published
    units, those of energies in thousandths.

    Parameters
    ----------
    path : str
        The folder of `qm9.pt`, which `mtobal data prepare qm9` makes, or of the published `qm9_v3.pt`, which takes
        minutes to read. Neither is trusted: they can hold nothing but tensors.
    validation_molecules, test_molecules : int
        How many molecules to draw for each; training gets the rest.
    seed : int
        Of that draw; it is not the seed of a training run.
    """
    table = _read(Path(path))
    rest = len(table) - validation_molecules - test_molecules
    if validation_molecules < 1 or test_molecules < 1 or rest < 2:
        raise UsageError(
            "data set 'qm9': validation_molecules and test_molecules should be 1 or more and leave at least 2 of "
            f"the {len(table)} molecules, not {validation_molecules} and {test_molecules}."
        )
    if seed < 0:
        raise UsageError(f"data set 'qm9': seed should be 0 or more, not {seed}.")
    generator = torch.Generator().manual_seed(derive_seed("qm9", seed))
    order = torch.randperm(len(table), generator=generator)
    test, validation, train = order.split([test_molecules, validation_molecules, rest])  # type: ignore[no-untyped-call]
    values = table.properties.double()
    mean, deviation = values[train].mean(dim=0), values[train].std(dim=0)
    if same := [name for name, column in TARGETS.items() if not deviation[column] > 0]:
        raise UsageError(f"{path}: expected molecules that differ, but all for training have the same {same[0]}.")
    standard = ((values - mean) / deviation).float()

    def assemble(rows: Tensor) -> MoleculeDataset:
        return MoleculeDataset(
            table, rows, {name: standard[rows][:, [column]] for name, column in TARGETS.items()}
        )

    return MultiTaskData(
        train=assemble(train),
        validation=assemble(validation),
        test=assemble(test),
        tasks=tuple(
            Regression(name, unit=float(deviation[column]) * (1000 if name in MILLI else 1))
            for name, column in TARGETS.items()
        ),
        input_shape=(NODE_FEATURES,),
    )


def check_qm9(path: Path) -> list[Check]:
    """Return a look at the file and every molecule in it."""

    def look() -> None:
        expect_count(str(path), len(_read(path)), COUNT)

    return [(path, look)]


def prepare_qm9(source: Path, target: Path, track: Track) -> str:
    """Convert the published file into a few large tensors, which are read in a second."""
    place = source / FILE if source.is_dir() else source
    destination = (target.parent if target.is_file() else target) / PREPARED
    (table,) = track(map(_read_published, [place]), "reading molecules", 1)
    unfinished = destination.with_suffix(".unfinished")
    with refusals_of(destination, "written"):
        destination.parent.mkdir(parents=True, exist_ok=True)
        # By way of memory, because the writer of torch turns a full disk into an error without a word of it.
        content = io.BytesIO()
        torch.save(vars(table), content)
        unfinished.write_bytes(content.getvalue())  # a view of it would outlive an error
        found = _read_prepared(unfinished)
        if not all(torch.equal(value, getattr(found, name)) for name, value in vars(table).items()):
            raise UsageError(f"{destination}: holds something else than was written; the disk may be at fault.")
        unfinished.replace(destination)
    return f"{len(table)} molecules converted, in {destination}"


def _read(path: Path) -> Table:
    if path.is_dir():
        for name in (PREPARED, FILE):
            if (path / name).exists():
                return _read(path / name)
        raise UsageError(f"{path}: expected {PREPARED} or {FILE} in it, found neither.")
    return _read_prepared(path) if path.name == PREPARED else _read_published(path)


def _read_prepared(path: Path) -> Table:
    found = _load(path)
    names = {each.name for each in fields(Table)}
    if not isinstance(found, dict) or found.keys() != names or not all(map(torch.is_tensor, found.values())):
        raise UsageError(f"{path}: expected the tensors {', '.join(sorted(names))}, found others.")
    return _checked(path, Table(**found))


def _read_published(path: Path) -> Table:
    found = _load(path)
    if not isinstance(found, list) or not found:
        raise UsageError(f"{path}: expected a list of molecules, found {type(found).__name__}.")
    for number, molecule in enumerate(found):
        if not _is_molecule(molecule):
            raise UsageError(
                f"{path}: molecule {number}: expected x (atoms, {NODE_FEATURES}), pos (atoms, 3), edge_index "
                f"(2, bonds), edge_attr (bonds, {BOND_TYPES}) and y (1, {NUM_PROPERTIES}), found others."
            )
    return _checked(path, Table.collect(found))


def _load(path: Path) -> Any:
    with open_file(path) as file:
        return load_tensors(file, str(path))


def _is_molecule(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    shapes = [tuple(getattr(value.get(key), "shape", ())) for key in ("x", "pos", "edge_index", "edge_attr", "y")]
    atoms, bonds = ((shape or (0,))[0] for shape in (shapes[0], shapes[3]))
    return shapes == [(atoms, NODE_FEATURES), (atoms, 3), (2, bonds), (bonds, BOND_TYPES), (1, NUM_PROPERTIES)]


def _checked(path: Path, table: Table) -> Table:
    counts = (table.atom_counts, table.bond_counts)
    number = len(table.properties) if table.properties.dim() else 0
    whole = (*counts, table.bonds)
    real = (table.nodes, table.positions, table.bond_types, table.properties)
    for parts, dtype in ((whole, torch.int64), (real, torch.float32)):
        if any(part.dtype != dtype or part.layout != torch.strided or part.is_meta for part in parts):
            raise UsageError(f"{path}: expected bonds and counts as int64 and all else as float32, found others.")
    if any(count.shape != (number,) for count in counts) or not number:
        raise UsageError(f"{path}: expected as many molecules in every tensor, found others.")
    if table.atom_counts.min() < 1 or table.atom_counts.max() > MAX_ATOMS:
        raise UsageError(f"{path}: expected molecules of 1 to {MAX_ATOMS} atoms, found others.")
    if table.bond_counts.min() < 0 or (table.bond_counts > table.atom_counts**2).any():
        raise UsageError(f"{path}: expected a bond between two atoms once each way, found more.")
    atoms, bonds = (int(count.sum()) for count in counts)
    shapes = [tuple(part.shape) for part in (*real, table.bonds)]
    if shapes != [(atoms, NODE_FEATURES), (atoms, 3), (bonds, BOND_TYPES), (number, NUM_PROPERTIES), (2, bonds)]:
        raise UsageError(f"{path}: expected tensors for {atoms} atoms and {bonds} bonds, found shapes {shapes}.")
    if ((table.bonds < 0) | (table.bonds >= table.atom_counts.repeat_interleave(table.bond_counts))).any():
        raise UsageError(f"{path}: expected bonds between atoms of one molecule, found others.")
    if not all(part.isfinite().all() for part in real):
        raise UsageError(f"{path}: expected finite numbers, found others.")
    return table
