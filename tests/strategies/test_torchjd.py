from __future__ import annotations

import copy
import subprocess
import sys

import pytest
import torch
import torchjd.aggregation as tj
from torchjd.linalg import PSDMatrix
from torchjd.scalarization import STCH

import mtobal
from mtobal import Balancer, UsageError
from mtobal.ops import Jacobian
from mtobal.strategies import Step, build
from networks import SharedNet, batch, losses, rows_alone


class Third(tj.Weighting[PSDMatrix]):
    """A weighting of the user's own, as TorchJD's documentation writes them."""

    def forward(self, gramian: torch.Tensor, /) -> torch.Tensor:
        return torch.full_like(gramian[0], 1 / 3)


@pytest.fixture
def rows() -> torch.Tensor:
    return torch.randn(3, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def constant() -> tj.Constant:
    return tj.Constant(torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64))


def trimmed_mean() -> tj.TrimmedMean:
    return tj.TrimmedMean(trim_number=1)


def averaged() -> tj.CRMOGMWeighting:
    return tj.CRMOGMWeighting(tj.MGDAWeighting())


@pytest.mark.parametrize(
    "make",
    [
        tj.UPGrad,
        tj.MGDA,
        tj.AlignedMTL,
        tj.PCGrad,
        tj.GradVac,
        tj.Mean,
        constant,
        tj.ExcessMTL,
        tj.ConFIG,
        tj.GradDrop,
        trimmed_mean,
    ],
)
def test_an_aggregator_gives_what_it_gives_alone(make, rows: torch.Tensor) -> None:
    alone, wrapped = make(), make()
    for number in range(3):
        moved = rows.roll(number, dims=1)
        torch.manual_seed(number)
        expected = alone(moved)
        torch.manual_seed(number)
        torch.testing.assert_close(mtobal.aggregate(moved, wrapped), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("make", "reads"),
    [
        (tj.UPGradWeighting, "gramian"),
        (lambda: tj.KrumWeighting(0), "gramian"),
        (tj.MoDoWeighting, "gramian"),
        (tj.SDMGradWeighting, "gramian"),
        (Third, "gramian"),
        (averaged, "gramian"),
        (lambda: tj.CRMOGMWeighting(tj.MeanWeighting()), "jacobian"),
        (tj.MeanWeighting, "jacobian"),
        (tj.ExcessMTLWeighting, "jacobian"),
    ],
)
def test_a_weighting_is_given_what_it_reads(make, reads: str, rows: torch.Tensor) -> None:
    composition = build(make())
    assert composition.aggregation.reads == reads
    expected = make()(rows @ rows.T if reads == "gramian" else rows) @ rows
    torch.testing.assert_close(mtobal.aggregate(rows, composition), expected, rtol=1e-12, atol=1e-14)
    if reads == "gramian":
        torch.testing.assert_close(mtobal.weights(rows @ rows.T, make()), make()(rows @ rows.T))


@pytest.mark.parametrize("make", [tj.UPGrad, tj.Mean, trimmed_mean, tj.UPGradWeighting])
def test_it_trains_a_network(make) -> None:
    net, data = SharedNet(), batch()
    balancer = Balancer(make(), net)
    balancer(losses(net, data)).backward()
    rows = rows_alone(net, data)
    shared = [name for name, _ in net.named_parameters() if name.startswith("encoder")]
    matrix = torch.stack([torch.cat([row[name].flatten() for name in shared]) for row in rows.values()])
    found = torch.cat([net.get_parameter(name).grad.flatten() for name in shared])
    torch.testing.assert_close(found, mtobal.aggregate(matrix, make()))
    assert set(balancer.head_weights.values()) == {1.0}


@pytest.mark.parametrize("make", [tj.GradVac, tj.PCD, tj.ExcessMTL, averaged])
def test_its_state_continues_in_a_new_object(make, rows: torch.Tensor, tmp_path) -> None:
    def run(composition: mtobal.strategies.Composition, numbers: range) -> list[torch.Tensor]:
        found = []
        for number in numbers:
            torch.manual_seed(number)
            found.append(mtobal.aggregate(rows.roll(number, dims=1), composition))
        return found

    original = build(make())
    run(original, range(3))
    torch.save(original.state_dict(), tmp_path / "state.pt")
    resumed = build(make())
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    fresh = run(build(make()), range(3, 6))
    expected = run(original, range(3, 6))
    assert all(map(torch.equal, run(resumed, range(3, 6)), expected))
    assert not all(map(torch.equal, fresh, expected))


def test_what_keeps_more_than_numbers_starts_anew() -> None:
    original = build(tj.NashMTL(n_tasks=3))
    state = copy.deepcopy(original.state_dict())
    build(tj.NashMTL(n_tasks=3)).load_state_dict(state)
    assert state["aggregation._extra_state"]["torchjd"]["weighting"] == {}


def test_blocks_of_mixed_precision_are_joined_in_the_better_one(rows: torch.Tensor) -> None:
    blocks = (rows[:, :3].float(), rows[:, 3:])
    found = build(tj.ConFIG()).aggregation.direct(Jacobian(blocks, ("a", "b")), Step.of(3))
    assert [block.dtype for block in found.blocks] == [torch.float32, torch.float64]
    joined = torch.cat([blocks[0].double(), blocks[1]], dim=1)
    torch.testing.assert_close(
        torch.cat([b.double() for b in found.blocks]), tj.ConFIG()(joined), rtol=1e-6, atol=0
    )


def test_a_scalarizer_is_refused() -> None:
    with pytest.raises(UsageError, match="STCH of TorchJD is neither an aggregator nor a weighting"):
        build(STCH(mu=1.0))


def test_it_is_not_imported_unless_asked_for() -> None:
    code = "import sys, mtobal; mtobal.strategies.build('mgda'); assert 'torchjd' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
