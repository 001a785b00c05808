"""The statistics against scipy, and against the errors that they promise when nothing differs."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from mtobal.report.comparison import compare, judged
from mtobal.report.statistics import (
    ALPHA,
    FEWEST_RESAMPLED,
    compare_ranks,
    expanded_levels,
    holm,
    mean_interval,
    paired_difference,
    rank_intervals,
    unpaired_difference,
)


def at_most(count: int, trials: int, rate: float) -> bool:
    """Whether a count of errors is compatible with a rate; a wrong alarm in one of a hundred thousand cases."""
    return bool(stats.binom.sf(count - 1, trials, rate) > 1e-5)


@pytest.mark.parametrize("n", [3, 4, 5])
def test_the_interval_of_few_seeds_is_students(n: int) -> None:
    values = np.random.default_rng(n).normal(size=n)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert mean_interval(values.tolist()) == pytest.approx((expected.low, expected.high))


@pytest.mark.parametrize("n", [6, 10])
def test_the_interval_of_more_seeds_is_scipys_bootstrap_at_the_expanded_level(n: int) -> None:
    values = np.random.default_rng(n).normal(size=n)
    low, high = expanded_levels(n)
    ours = mean_interval(values.tolist())
    theirs = stats.bootstrap(
        (values,), np.mean, confidence_level=high - low, n_resamples=20_000, method="percentile"
    ).confidence_interval
    assert ours == pytest.approx((theirs.low, theirs.high), abs=0.15 * values.std())
    assert ours == mean_interval(values.tolist())  # drawn alike every time


def test_too_few_or_broken_values_have_no_interval() -> None:
    assert mean_interval([1.0, 2.0]) is None
    assert mean_interval([1.0, math.nan, 2.0, 3.0]) is None
    assert rank_intervals(np.zeros((FEWEST_RESAMPLED - 1, 3, 2)), [True, True]) is None


@pytest.mark.parametrize("n", [3, 5, 6, 8])
def test_the_interval_covers_the_mean_in_95_of_100_cases(n: int) -> None:
    trials = 1000
    samples = np.random.default_rng(n).normal(size=(trials, n))
    missed = sum(not low <= 0 <= high for low, high in map(mean_interval, samples.tolist()))  # type: ignore[misc]
    assert at_most(missed, trials, 0.06)  # the bootstrap of 6 is short of 95 by a trifle
    assert missed > 0.03 * trials


def test_rank_intervals_hold_the_rank_and_know_a_clear_order() -> None:
    generator = np.random.default_rng(0)
    values = generator.normal(0, 0.01, (8, 3, 2)) + np.array([[2.0, -2.0], [1.0, -1.0], [1.0, -1.0]])
    intervals = rank_intervals(values, [True, False])
    assert intervals is not None
    assert intervals[0].tolist() == [1, 1]
    assert (intervals[1:, 0] >= 2).all()
    assert (intervals[1:, 0] < intervals[1:, 1]).all()
    values[:, 0] = np.nan
    assert rank_intervals(values, [True, False])[0].tolist() == [3, 3]  # type: ignore[index]


def test_rank_intervals_are_bootstrap_quantiles_at_the_expanded_level() -> None:
    generator = np.random.default_rng(0)
    values = generator.normal(size=(6, 3, 40))
    drawn = values[generator.integers(0, 6, (4000, 6))].mean(axis=1)
    expected = np.quantile(stats.rankdata(drawn, axis=1).mean(axis=2), expanded_levels(6), axis=0).T
    assert rank_intervals(values, [False] * 40) == pytest.approx(expected, abs=0.04)


def test_paired_and_unpaired_differences_are_scipys() -> None:
    first, second = np.random.default_rng(0).normal(size=(2, 5))
    for ours, theirs in (
        (paired_difference(first, second), stats.ttest_rel(first, second)),
        (unpaired_difference(first, second), stats.ttest_ind(first, second, equal_var=False)),
    ):
        interval = theirs.confidence_interval()
        assert ours.p == pytest.approx(theirs.pvalue)
        assert ours.interval == pytest.approx((interval.low, interval.high))
        assert ours.mean == pytest.approx(first.mean() - second.mean())


def test_what_cannot_be_tested_has_no_p_value() -> None:
    for difference in (paired_difference, unpaired_difference):
        assert difference([1.0, 2.0], [3.0, 5.0]).p is None
        assert difference([1.0, 2.0, math.nan], [3.0, 5.0, 4.0]).p is None
        assert difference([1.0] * 5, [3.0] * 5).p is None
        assert difference([], []).p is None
    assert paired_difference([0.1, 0.2, 0.3], [0.2, 0.3, 0.4]).p is None  # the same in every seed, to rounding
    assert paired_difference([0.1, 0.2, 0.3], [0.1, 0.2, 0.3]).p == 1


def test_holm_is_the_stepwise_procedure() -> None:
    generator = np.random.default_rng(0)
    for _ in range(20):
        p_values = generator.uniform(0, 0.1, 7)
        rejected = np.zeros(7, dtype=bool)
        for step, index in enumerate(np.argsort(p_values)):
            if p_values[index] > ALPHA / (7 - step):
                break
            rejected[index] = True
        assert [p <= ALPHA for p in holm(p_values.tolist())] == rejected.tolist()  # type: ignore[operator]
    assert holm([]) == []


def test_ranks_are_scipys_friedman_and_the_published_critical_difference() -> None:
    scores = np.random.default_rng(0).normal(size=(30, 4))
    comparison = compare_ranks(scores)
    assert comparison is not None
    assert comparison.p == pytest.approx(stats.friedmanchisquare(*scores.T).pvalue)
    # Demsar 2006, table 5: q = 2.569 for four rows.
    assert comparison.critical_difference == pytest.approx(2.569 * math.sqrt(4 * 5 / (6 * 30)), abs=1e-3)


def test_groups_join_rows_within_a_critical_difference() -> None:
    generator = np.random.default_rng(0)
    scores = generator.normal(size=(40, 6)) + np.array([20, 0, 0, 10, 10, 10])
    comparison = compare_ranks(scores)
    assert comparison is not None
    assert [set(group) for group in comparison.groups] == [{1, 2}, {3, 4, 5}]  # and not {4, 5} again
    assert compare_ranks(np.zeros((5, 4))) is None
    assert compare_ranks(np.tile(np.array([0.3, 0.1 + 0.2, 0.3]), (5, 1))) is None  # equal but for rounding
    tied = compare_ranks(np.tile(np.array([0.3, 0.1 + 0.2, 0.5]), (5, 1)))
    assert tied is not None
    assert tied.ranks == (1.5, 1.5, 3)
    assert compare_ranks(scores[:2]) is None
    diverged = compare_ranks(np.where(np.arange(6) == 1, np.nan, scores))
    assert diverged is not None
    assert diverged.ranks[1] == 6


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("noise", ["normal", "exponential"])
def test_identical_strategies_are_told_apart_no_more_often_than_promised(seeds: int, noise: str) -> None:
    """Each family of tests, and the ranks, raise a false alarm in at most 5 % of all experiments."""
    generator = np.random.default_rng(seeds)
    trials, alarms = 200, {"all pairs": 0, "reference": 0, "baseline": 0, "ranks": 0}
    for _ in range(trials):
        # What a seed does to all rows alike is what pairing takes out.
        draws = getattr(generator, noise)(size=(6, seeds)) + generator.normal(size=seeds)
        scores = {name: dict(enumerate(row.tolist())) for name, row in zip("abcdef", draws, strict=True)}
        gains = {name: dict(enumerate(generator.normal(size=seeds))) for name in scores}
        comparison = compare("delta_m", scores, "a", "baseline", gains)
        for name, family in (
            ("all pairs", comparison.pairs),
            ("reference", comparison.against_reference),
            ("baseline", comparison.against_baseline),
        ):
            alarms[name] += any(pair.verdict in ("better", "worse") for pair in family)
        assert comparison.ranks is not None
        alarms["ranks"] += comparison.ranks.p <= ALPHA
    assert all(at_most(count, trials, ALPHA) for count in alarms.values()), alarms


def test_one_uncorrected_test_errs_at_the_nominal_rate() -> None:
    generator = np.random.default_rng(0)
    trials = 1500
    draws = generator.normal(size=(trials, 2, 4))
    alarms = sum(paired_difference(*pair).p <= ALPHA for pair in draws.tolist())  # type: ignore[operator]
    assert stats.binomtest(alarms, trials, ALPHA).pvalue > 1e-4


def test_a_real_difference_is_found_and_named_in_both_directions() -> None:
    generator = np.random.default_rng(0)
    shared = generator.normal(size=5)
    scores = {
        name: dict(enumerate((shared + shift + generator.normal(0, 0.05, 5)).tolist()))
        for name, shift in (("ew", 0.0), ("good", -1.0), ("bad", 1.0), ("same", 0.0))
    }
    comparison = compare("delta_m", scores, "ew", "baseline", {})
    assert {pair.first: pair.verdict for pair in comparison.against_reference} == {
        "good": "better",
        "bad": "worse",
        "same": "not shown",
    }
    assert comparison.between("good", "bad") == "better"
    assert comparison.between("bad", "good") == "worse"
    assert comparison.cannot_tell == ""
    assert [judged(-1.0, p) for p in (ALPHA, ALPHA + 1e-9, None)] == ["better", "not shown", "cannot tell"]


def test_too_few_seeds_are_named() -> None:
    two = {"ew": {0: 1.0, 1: 2.0}, "uw": {0: 5.0, 1: 9.0}}
    comparison = compare("delta_m", two, "ew", "baseline", {})
    assert comparison.cannot_tell == "With 2 seeds no difference between rows can be shown; it takes 3 or more."
    apart = compare("delta_m", {"ew": {0: 1.0}, "uw": {1: 1.0}}, "ew", "baseline", {})
    assert apart.cannot_tell.startswith("Without a seed in common")
    assert apart.ranks is None
