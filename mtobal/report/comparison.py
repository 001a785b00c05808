"""Which rows of an experiment differ by more than their seeds do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np

from mtobal.report.statistics import (
    ALPHA,
    FEWEST_SEEDS,
    Difference,
    RankComparison,
    compare_ranks,
    holm,
    paired_difference,
)

Scores = Mapping[str, Mapping[int, float]]
"""By row and seed; lower is better."""

Verdict = Literal["better", "worse", "not shown", "cannot tell"]


@dataclass(frozen=True)
class Pair:
    """The test of one row against another, `adjusted` for all tests of its family."""

    first: str
    second: str
    difference: Difference
    adjusted: float | None

    @property
    def verdict(self) -> Verdict:
        """What the seeds say of the first row against the second."""
        return judged(self.difference.mean, self.adjusted)


def judged(difference: float, adjusted: float | None) -> Verdict:
    """Put a test in words, for a difference that is good below zero."""
    if adjusted is None:
        return "cannot tell"
    if adjusted > ALPHA:
        return "not shown"
    return "better" if difference < 0 else "worse"


@dataclass(frozen=True)
class Comparison:
    """Paired tests over seeds in three families, each corrected for its own size, and the ranks of all rows.

    `score` names what is compared; in all of it, lower is better. `rows` are those that `ranks` speaks of, and
    `seeds` those that they share.
    """

    score: str
    pairs: tuple[Pair, ...]
    against_reference: tuple[Pair, ...]
    against_baseline: tuple[Pair, ...]
    rows: tuple[str, ...]
    seeds: tuple[int, ...]
    ranks: RankComparison | None

    def between(self, first: str, second: str) -> Verdict:
        """Return the verdict on two rows within the family of all pairs."""
        opposite: dict[Verdict, Verdict] = {"better": "worse", "worse": "better"}
        for pair in self.pairs:
            if (pair.first, pair.second) == (first, second):
                return pair.verdict
            if (pair.first, pair.second) == (second, first):
                return opposite.get(pair.verdict, pair.verdict)
        raise KeyError((first, second))

    @property
    def cannot_tell(self) -> str:
        """Why there is no test between rows at all; empty where there is one."""
        if len(self.rows) < 2 or any(pair.adjusted is not None for pair in self.pairs):
            return ""
        most = max(pair.difference.n for pair in self.pairs)
        if most < FEWEST_SEEDS:
            shared = {0: "Without a seed in common", 1: "With 1 seed"}.get(most, f"With {most} seeds")
            return f"{shared} no difference between rows can be shown; it takes {FEWEST_SEEDS} or more."
        why = "the scores are not finite, or no difference varies over seeds"
        return f"No difference between rows can be tested: {why}."


def compare(score: str, scores: Scores, reference: str, baseline: str, gains: Scores) -> Comparison:
    """Test every row against every other, against the reference row, and against the single-task baseline.

    Parameters
    ----------
    score
        What the numbers are.
    scores
        Of every row, by seed.
    reference, baseline
        The names of the reference row, which may be absent, and of the baseline.
    gains
        Of every row, by seed: the score against the baseline of that seed, where zero is no difference.
    """
    names = list(scores)
    others = [name for name in names if name != reference] if reference in scores else []
    seeds = sorted(set.intersection(*(set(by_seed) for by_seed in scores.values()))) if scores else []
    table = np.array([[scores[name][seed] for name in names] for seed in seeds], dtype=np.float64)
    return Comparison(
        score=score,
        pairs=_family(
            [(first, second, *_shared(scores, first, second)) for first, second in combinations(names, 2)]
        ),
        against_reference=_family([(name, reference, *_shared(scores, name, reference)) for name in others]),
        against_baseline=_family(
            [(name, baseline, list(by_seed.values()), [0.0] * len(by_seed)) for name, by_seed in gains.items()]
        ),
        rows=tuple(names),
        seeds=tuple(seeds),
        ranks=compare_ranks(table) if seeds else None,
    )


def _shared(scores: Scores, first: str, second: str) -> tuple[list[float], list[float]]:
    seeds = sorted(scores[first].keys() & scores[second].keys())
    return [scores[first][seed] for seed in seeds], [scores[second][seed] for seed in seeds]


def _family(tests: Sequence[tuple[str, str, Sequence[float], Sequence[float]]]) -> tuple[Pair, ...]:
    differences = [paired_difference(mine, theirs) for _, _, mine, theirs in tests]
    adjusted = holm([difference.p for difference in differences])
    return tuple(
        Pair(first, second, difference, p)
        for (first, second, _, _), difference, p in zip(tests, differences, adjusted, strict=True)
    )
