"""Metrics of several ranks: together they say what one rank with all of the data would, however it is parted."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mtobal.metrics import DeltaM, Hypervolume, MeanRank
from mtobal.tasks import Classification, Depth, MultiLabel, Normals, Regression, Restoration, Segmentation, Task
from processes import run_on_ranks

BATCHES = (slice(0, 4), slice(4, 8), slice(8, 9))
PARTS = {
    "uneven": ((BATCHES[0], BATCHES[2]), (BATCHES[1],)),
    "one rank alone": (BATCHES, ()),
}
POINTS = [{"acc": 1.0, "error": 2.0}, {"acc": 2.0, "error": 3.0}, {"acc": 0.5, "error": 1.0}]
UPWARD = {"acc": True, "error": False}


def samples() -> list[tuple[Task, Tensor, Tensor]]:
    """Return each task with an output and a target of nine samples, some without a label."""
    generator = torch.Generator().manual_seed(0)

    def real(*shape: int) -> Tensor:
        return torch.randn(9, *shape, generator=generator)

    depth, normals, numbers, pictures = real(1, 5, 6), F.normalize(real(3, 5, 6), dim=1), real(2), real(3, 5, 6)
    normals[:, :, 0] = 0
    numbers[3], pictures[2] = math.nan, math.nan
    return [
        (Classification("classes", 4), real(4), torch.randint(-1, 4, (9,), generator=generator)),
        (Segmentation("segmentation", 4), real(4, 5, 6), torch.randint(-1, 4, (9, 5, 6), generator=generator)),
        (Depth("depth"), real(1, 5, 6), depth),
        (Normals("normals"), real(3, 5, 6), normals),
        (MultiLabel("labels", 3), real(3), torch.randint(-1, 2, (9, 3), generator=generator)),
        (Regression("numbers", 2), real(2), numbers),
        (Restoration("pictures"), real(3, 5, 6), pictures),
    ]


def measured(rank: int, parts: tuple[tuple[slice, ...], ...]) -> dict[str, float]:
    """Return what a rank finds when each has seen its part of the batches."""
    found = {}
    for task, output, target in samples():
        for convention in (task.metrics, task.batch_metrics):
            for name, metric in convention().items():
                for rows in parts[rank]:
                    metric.update(output[rows], target[rows])
                found[f"{convention.__name__}/{task.name}/{name}"] = float(metric.compute())
    delta, front = DeltaM({"acc": 1.0, "error": 1.0}, UPWARD), Hypervolume({"acc": 0.0, "error": 4.0}, UPWARD)
    ranks = MeanRank(["a", "b"], UPWARD)
    for rows in parts[rank]:
        point = POINTS[BATCHES.index(rows)]
        delta.update(point)
        front.update(point)
        ranks.update("a", point)
        ranks.update("b", {"acc": 1.0, "error": 2.5})
    found["delta_m"], found["hypervolume"] = float(delta.compute()), float(front.compute())
    return {**found, **{f"rank of {method}": float(value) for method, value in ranks.compute().items()}}


@pytest.mark.filterwarnings("ignore:The ``compute`` method:UserWarning")
@pytest.mark.parametrize("parts", PARTS.values(), ids=PARTS)
def test_ranks_agree_with_one_that_sees_it_all(parts: tuple[tuple[slice, ...], ...], tmp_path: Path) -> None:
    alone = measured(0, (BATCHES,))
    assert not any(map(math.isnan, alone.values()))
    for found in run_on_ranks(tmp_path, measured, parts):
        assert found == pytest.approx(alone, rel=1e-5)
