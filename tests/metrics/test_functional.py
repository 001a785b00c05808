"""delta_m, delta_p and mean_rank: the published tables, and what must hold for any numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtobal.errors import UsageError
from mtobal.metrics import delta_m, delta_p, mean_rank

# NYUv2 as in FAMO's table 1 (SegNet with attention) and Dual-Balancing's table 1 (ResNet-50):
# mIoU, pixel accuracy; absolute and relative depth error; normals: mean and median angle, within 11.25, 22.5, 30.
NYU_UPWARD = [True, True, False, False, False, False, True, True, True]
NYU_TASKS = ["segmentation"] * 2 + ["depth"] * 2 + ["normals"] * 5
NYU_SINGLE = "38.30 63.76 .6754 .2780 25.01 19.21 30.14 57.20 69.15"
NYU_SINGLE_R50 = "53.50 75.39 .3926 .1605 21.99 15.16 39.04 65.00 75.16"
NYU = {  # row -> metrics, mean rank, delta_m
    "LS": ("39.29 65.33 .5493 .2263 28.15 23.96 22.09 47.50 61.08", "8.89", "5.59"),
    "SI": ("38.45 64.27 .5354 .2201 27.60 23.37 22.53 48.57 62.32", "7.89", "4.39"),
    "RLW": ("37.17 63.77 .5759 .2410 28.27 24.18 22.26 47.05 60.62", "11.22", "7.78"),
    "DWA": ("39.11 65.31 .5510 .2285 27.61 23.18 24.17 50.18 62.39", "7.67", "3.57"),
    "UW": ("36.87 63.17 .5446 .2260 27.04 22.61 23.54 49.05 63.65", "7.44", "4.05"),
    "MGDA": ("30.47 59.90 .6070 .2555 24.88 19.45 29.18 56.88 69.36", "6.00", "1.38"),
    "PCGrad": ("38.06 64.64 .5550 .2325 27.41 22.80 23.86 49.83 63.14", "8.00", "3.97"),
    "GradDrop": ("39.39 65.12 .5455 .2279 27.48 22.96 23.38 49.44 62.87", "7.00", "3.58"),
    "CAGrad": ("39.79 65.49 .5486 .2250 26.31 21.58 25.61 52.36 65.58", "4.56", "0.20"),
    "IMTL-G": ("39.35 65.60 .5426 .2256 26.02 21.19 26.20 53.13 66.24", "3.78", "-0.76"),
    "Nash-MTL": ("40.13 65.93 .5261 .2171 25.26 20.08 28.40 55.47 68.15", "2.11", "-4.04"),
    "FAMO": ("38.88 64.90 .5474 .2194 25.06 19.57 29.21 56.61 68.98", "3.44", "-4.10"),
}
CITY_UPWARD = [True, True, False, False]
CITY_SINGLE = "74.01 93.16 .0125 27.77"
CITY = {  # FAMO's table 3
    "LS": ("70.95 91.73 .0161 33.83", "14.11"),
    "RLW": ("74.57 93.41 .0158 47.79", "24.38"),
    "DWA": ("75.24 93.52 .0160 44.37", "21.45"),
    "UW": ("72.02 92.85 .0140 30.13", "5.89"),
    "MGDA": ("68.84 91.54 .0309 33.50", "44.14"),
    "PCGrad": ("75.13 93.48 .0154 42.07", "18.29"),
    "GradDrop": ("75.27 93.53 .0157 47.54", "23.73"),
    "CAGrad": ("75.16 93.48 .0141 37.60", "11.64"),
    "IMTL-G": ("75.33 93.49 .0135 38.41", "11.10"),
    "Nash-MTL": ("75.41 93.66 .0129 35.02", "6.82"),
    "FAMO": ("74.54 93.29 .0145 32.59", "8.13"),
}
DELTA_P = [  # NYUv2, Cityscapes, Office-31: tasks, upward, single-task row, row, delta_p
    (NYU_TASKS, NYU_UPWARD, NYU_SINGLE, "41.42 66.45 .5251 .2160 25.03 19.50 28.72 56.17 68.73", "8.91"),
    (NYU_TASKS, NYU_UPWARD, NYU_SINGLE_R50, "53.93 75.53 .3825 .1577 23.57 17.01 35.04 60.99 72.05", "-1.78"),
    (NYU_TASKS, NYU_UPWARD, NYU_SINGLE_R50, "53.92 75.60 .3768 .1557 21.97 15.37 38.43 64.81 75.24", "1.15"),
    (["s", "s", "d", "d"], CITY_UPWARD, "69.06 91.54 .01282 43.53", "68.93 91.58 .01315 45.90", "-2.05"),
    (["amazon", "dslr", "webcam"], [True] * 3, "86.61 95.63 96.85", "83.53 97.27 96.85", "-0.61"),
]


def numbers(printed: str) -> list[float]:
    return [float(text) for text in printed.split()]


def half_units(printed: str) -> np.ndarray:
    """Return how far each number may lie from what was printed."""
    return np.array([0.5 * 10.0 ** -len(text.partition(".")[2]) for text in printed.split()])


def rounding(row: str, single: str, score: str, weights: np.ndarray) -> float:
    """Return how far the score of the printed numbers may lie from the printed score (to first order)."""
    values, base = np.array(numbers(row)), np.array(numbers(single))
    relative = half_units(row) / base + values * half_units(single) / base**2
    return 1.001 * float(100 * (weights * relative).sum() + half_units(score)[0])


@pytest.mark.parametrize("row", [name for name in NYU if name != "IMTL-G"])  # whose printed score is not its row's
def test_delta_m_of_the_published_nyuv2_rows(row: str) -> None:
    metrics, _, score = NYU[row]
    tolerance = rounding(metrics, NYU_SINGLE, score, np.full(9, 1 / 9))
    assert delta_m(numbers(metrics), numbers(NYU_SINGLE), NYU_UPWARD) == pytest.approx(float(score), abs=tolerance)


@pytest.mark.parametrize("row", ["LS", "SI", "RLW", "DWA", "MGDA", "PCGrad", "GradDrop", "FAMO"])
def test_delta_m_of_published_nyuv2_rows_to_the_printed_digit(row: str) -> None:
    metrics, _, score = NYU[row]
    assert f"{delta_m(numbers(metrics), numbers(NYU_SINGLE), NYU_UPWARD):.2f}" == score


@pytest.mark.parametrize("row", CITY)
def test_delta_m_of_the_published_cityscapes_rows(row: str) -> None:
    metrics, score = CITY[row]
    tolerance = rounding(metrics, CITY_SINGLE, score, np.full(4, 1 / 4))
    assert delta_m(numbers(metrics), numbers(CITY_SINGLE), CITY_UPWARD) == pytest.approx(
        float(score), abs=tolerance
    )


@pytest.mark.parametrize("row", ["MGDA", "FAMO"])
def test_delta_m_of_published_cityscapes_rows_to_the_printed_digit(row: str) -> None:
    metrics, score = CITY[row]
    # 8.125 is printed as 8.13: half a unit of the last digit, and no more.
    assert delta_m(numbers(metrics), numbers(CITY_SINGLE), CITY_UPWARD) == pytest.approx(float(score), abs=0.0051)


@pytest.mark.parametrize(("tasks", "upward", "single", "row", "score"), DELTA_P)
def test_delta_p_of_published_rows(
    tasks: list[str], upward: list[bool], single: str, row: str, score: str
) -> None:
    weights = np.array([1 / (len(set(tasks)) * tasks.count(task)) for task in tasks])
    tolerance = rounding(row, single, score, weights)
    assert delta_p(numbers(row), numbers(single), upward, tasks) == pytest.approx(float(score), abs=tolerance)


def test_delta_p_of_published_rows_to_the_printed_digit() -> None:
    for tasks, upward, single, row, score in DELTA_P[:2]:
        assert f"{delta_p(numbers(row), numbers(single), upward, tasks):.2f}" == score


def test_the_two_scores_disagree_about_equal_weighting() -> None:
    row = numbers(NYU["LS"][0])
    assert f"{delta_m(row, numbers(NYU_SINGLE), NYU_UPWARD):.2f}" == "5.59"  # worse than single-task
    assert f"{delta_p(row, numbers(NYU_SINGLE), NYU_UPWARD, NYU_TASKS):.2f}" == "0.88"  # better


def test_mean_rank_of_the_published_nyuv2_rows() -> None:
    ranks = mean_rank({name: numbers(row) for name, (row, _, _) in NYU.items()}, NYU_UPWARD)
    assert {name: f"{rank:.2f}" for name, rank in ranks.items()} == {
        name: rank for name, (_, rank, _) in NYU.items()
    }


positive = st.floats(0.01, 100)


@st.composite
def comparisons(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str]]:
    tasks, per_task = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    size = tasks * per_task
    vector = st.lists(positive, min_size=size, max_size=size).map(np.array)
    upward = st.lists(st.booleans(), min_size=size, max_size=size).map(np.array)
    return draw(vector), draw(vector), draw(upward), [f"task {i // per_task}" for i in range(size)]


@given(comparisons())
def test_with_equal_numbers_of_metrics_the_scores_differ_in_sign_alone(comparison: tuple) -> None:
    metrics, baseline, upward, tasks = comparison
    assert delta_p(metrics, baseline, upward, tasks) == pytest.approx(-delta_m(metrics, baseline, upward))


@given(comparisons(), positive)
def test_the_scores_do_not_depend_on_units_order_or_container(comparison: tuple, unit: float) -> None:
    metrics, baseline, upward, tasks = comparison
    names = [f"metric {i}" for i in range(len(metrics))]
    turned = names[::-1]

    def mapping(values: object) -> dict:
        by_name = dict(zip(names, values, strict=True))
        return {name: by_name[name] for name in turned}

    expected = delta_m(metrics, baseline, upward)
    assert delta_m(metrics * unit, baseline * unit, upward) == pytest.approx(expected, rel=1e-6, abs=1e-9)
    assert delta_m(mapping(metrics), mapping(baseline), mapping(upward)) == pytest.approx(expected, abs=1e-9)
    assert delta_p(mapping(metrics), mapping(baseline), mapping(upward), mapping(tasks)) == pytest.approx(
        delta_p(metrics, baseline, upward, tasks), abs=1e-9
    )


@given(comparisons())
def test_the_baseline_scores_zero_and_a_gain_is_signed(comparison: tuple) -> None:
    _, baseline, upward, tasks = comparison
    assert delta_m(baseline, baseline, upward) == 0
    assert delta_p(baseline, baseline, upward, tasks) == 0
    better = np.where(upward, 1.1, 0.9) * baseline
    assert delta_m(better, baseline, upward) == pytest.approx(-10)
    assert delta_p(better, baseline, upward, tasks) == pytest.approx(10)
    # A baseline below zero (an explained variance, say) does not turn the verdict.
    assert delta_m(-better, -baseline, ~upward) == pytest.approx(-10)


@given(st.integers(2, 6), st.integers(1, 5), st.randoms(use_true_random=False))
def test_ranks_share_out_all_places_and_see_order_alone(methods: int, metrics: int, random: object) -> None:
    values = {f"m{i}": np.array([float(random.randint(0, 3)) for _ in range(metrics)]) for i in range(methods)}
    upward = [random.random() < 0.5 for _ in range(metrics)]
    ranks = mean_rank(values, upward)
    assert sum(ranks.values()) == pytest.approx(methods * (methods + 1) / 2)
    assert ranks == mean_rank({name: np.exp(row) for name, row in values.items()}, upward)
    assert ranks == mean_rank({name: -row for name, row in values.items()}, np.logical_not(upward))


def test_ties_share_their_ranks_and_nan_is_last() -> None:
    rows = {"a": [3.0], "b": [3.0], "c": [1.0], "d": [math.nan]}
    assert mean_rank(rows, [True]) == {"a": 1.5, "b": 1.5, "c": 3.0, "d": 4.0}
    assert mean_rank(rows, [False]) == {"a": 2.5, "b": 2.5, "c": 1.0, "d": 4.0}


def test_nan_makes_the_score_nan() -> None:
    assert math.isnan(delta_m([math.nan, 1.0], [1.0, 1.0], [True, True]))
    assert math.isnan(delta_p([1.0, 1.0], [1.0, math.nan], [True, True], ["a", "b"]))


def test_wrong_use_says_what_is_wrong() -> None:
    with pytest.raises(UsageError, match=r"baseline of metric 'b' is 0"):
        delta_m({"a": 1.0, "b": 1.0}, {"a": 1.0, "b": 0.0}, {"a": True, "b": True})
    with pytest.raises(UsageError, match=r"baseline of metric number 1 is 0"):
        delta_p([1.0, 1.0], [1.0, 0.0], [True, True], ["a", "b"])
    with pytest.raises(UsageError, match=r"baseline: .* they differ in \['b', 'c'\]"):
        delta_m({"a": 1.0, "b": 1.0}, {"a": 1.0, "c": 1.0}, {"a": True, "b": True})
    with pytest.raises(UsageError, match=r"tasks: expected 2 entries as in the metrics, got 1"):
        delta_p([1.0, 1.0], [1.0, 1.0], [True, True], ["a"])
    with pytest.raises(UsageError, match=r"higher_is_better: expected the form of the metrics"):
        delta_m({"a": 1.0}, {"a": 1.0}, [True])
    with pytest.raises(UsageError, match="expected at least one metric"):
        delta_m({}, {}, {})
    with pytest.raises(UsageError, match=r"expected one value a metric, got an array of shape \(1, 2\)"):
        delta_m(np.ones((1, 2)), np.ones((1, 2)), [True])
    with pytest.raises(UsageError, match="at least two methods"):
        mean_rank({"ew": [1.0]}, [True])
    with pytest.raises(UsageError, match=r"metrics of 'uw': expected 1 entries as in the metrics, got 2"):
        mean_rank({"ew": [1.0], "uw": [1.0, 2.0]}, [True])
