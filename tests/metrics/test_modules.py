"""The scores as torchmetrics: the functions of the mean over runs, and the published rows."""

from __future__ import annotations

import itertools
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mtobal.errors import UsageError
from mtobal.metrics import DeltaM, DeltaP, Hypervolume, MeanRank, delta_m, hypervolume

NAMES = ("miou", "pixel", "abs", "rel", "mean", "median", "11", "22", "30")
UPWARD = dict(zip(NAMES, [True, True, False, False, False, False, True, True, True], strict=True))
TASKS = dict(zip(NAMES, ["seg"] * 2 + ["depth"] * 2 + ["normals"] * 5, strict=True))


def row(printed: str) -> dict[str, float]:
    return dict(zip(NAMES, map(float, printed.split()), strict=True))


SINGLE = row("38.30 63.76 .6754 .2780 25.01 19.21 30.14 57.20 69.15")
ROWS = {  # FAMO's table 1, with delta_m where the row gives it to the printed digit
    "LS": (row("39.29 65.33 .5493 .2263 28.15 23.96 22.09 47.50 61.08"), "5.59"),
    "DWA": (row("39.11 65.31 .5510 .2285 27.61 23.18 24.17 50.18 62.39"), "3.57"),
    "MGDA": (row("30.47 59.90 .6070 .2555 24.88 19.45 29.18 56.88 69.36"), "1.38"),
    "FAMO": (row("38.88 64.90 .5474 .2194 25.06 19.57 29.21 56.61 68.98"), "-4.10"),
}


@pytest.mark.parametrize("method", ROWS)
def test_delta_m_of_published_rows_to_the_printed_digit(method: str) -> None:
    metrics, printed = ROWS[method]
    score = DeltaM(SINGLE, UPWARD)
    score.update(metrics)
    assert f"{score.compute().item():.2f}" == printed


def test_delta_p_of_a_published_row_to_the_printed_digit() -> None:
    score = DeltaP(SINGLE, UPWARD, TASKS)
    score.update(row("41.42 66.45 .5251 .2160 25.03 19.50 28.72 56.17 68.73"))
    assert f"{score.compute().item():.2f}" == "8.91"
    assert score.higher_is_better
    assert not DeltaM(SINGLE, UPWARD).higher_is_better


def test_the_score_of_several_runs_is_the_mean_of_theirs_and_reset_forgets_them() -> None:
    score = DeltaM(SINGLE, UPWARD)
    for metrics, _ in ROWS.values():
        score.update(metrics)
    alone = [delta_m(metrics, SINGLE, UPWARD) for metrics, _ in ROWS.values()]
    assert score.compute().item() == pytest.approx(np.mean(alone))
    score.reset()
    score.update(SINGLE)
    assert score.compute().item() == 0


def test_scores_read_tensors_and_survive_pickling() -> None:
    score = DeltaM(SINGLE, UPWARD)
    score.update({name: torch.tensor(value, dtype=torch.float64) for name, value in ROWS["LS"][0].items()})
    assert f"{pickle.loads(pickle.dumps(score)).compute().item():.2f}" == "5.59"


def test_mean_rank_averages_runs_first() -> None:
    ranks = MeanRank(["a", "b"], {"acc": True})
    for accuracy in (0.9, 0.1):
        ranks.update("a", {"acc": accuracy})
    ranks.update("b", {"acc": 0.6})
    assert {name: rank.item() for name, rank in ranks.compute().items()} == {"a": 2.0, "b": 1.0}
    with pytest.raises(UsageError, match="unknown method 'c'"):
        ranks.update("c", {"acc": 1.0})


def test_other_metrics_are_named() -> None:
    with pytest.raises(UsageError, match=r"DeltaM: expected the metrics miou, .* they differ in '30', 'acc'"):
        DeltaM(SINGLE, UPWARD).update({**dict.fromkeys(NAMES[:-1], 1.0), "acc": 1.0})


points = st.lists(st.tuples(*[st.integers(0, 4)] * 3), min_size=1, max_size=6)


@given(points, st.lists(st.booleans(), min_size=3, max_size=3))
def test_the_hypervolume_counts_the_unit_cells_that_some_point_covers(front: list, upward: list[bool]) -> None:
    cells = sum(
        any(all(p > c for p, c in zip(point, cell, strict=True)) for point in front)
        for cell in itertools.product(range(4), repeat=3)
    )
    signs = np.where(upward, 1.0, -1.0)
    assert hypervolume([signs * np.array(point) for point in front], np.zeros(3), upward) == cells


def test_a_worse_point_adds_nothing_to_the_front() -> None:
    front = Hypervolume({"acc": 0.0, "error": 4.0}, {"acc": True, "error": False})
    front.update({"acc": 1.0, "error": 2.0})
    front.update({"acc": 3.0, "error": 5.0})
    assert front.compute().item() == 2.0


def test_diverged_runs_have_no_hypervolume() -> None:
    with pytest.raises(UsageError, match="expected finite metrics"):
        hypervolume([[float("nan"), 1.0]], [0.0, 0.0], [True, True])
