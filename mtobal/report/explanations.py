"""How intervals and tests came about, in the words that every face of the report prints."""

from __future__ import annotations

from mtobal.report.statistics import ALPHA, FEWEST_RESAMPLED, FEWEST_SEEDS
from mtobal.report.table import BASELINE, REFERENCE, Summary


def explanations(summary: Summary) -> list[str]:
    """Say what the intervals and verdicts of this table rest on."""
    comparison = summary.comparison
    told = [
        f"Intervals: 95 % for the mean over seeds. From {FEWEST_RESAMPLED} seeds on a bootstrap with expanded "
        f"percentiles; with {FEWEST_SEEDS} to {FEWEST_RESAMPLED - 1} Student's, which takes seeds to be normal; "
        "none below. They leave out the uncertainty of the baseline, which shifts all rows alike.",
    ]
    if comparison.pairs:
        told.append(
            f"Tests: two-sided paired t-tests over seeds of {comparison.score}, each p-value corrected for all "
            f"tests of its family (Holm); 'better' and 'worse' stand for p up to {ALPHA}. The families are all "
            f"{len(comparison.pairs)} pairs, the rows against {REFERENCE}, and the rows against {BASELINE}, seed "
            "by seed. 'Not shown' is no proof that two rows are equal."
        )
        told.append(
            "Tasks of one run are not counted as repetitions: they share a network, and what one gains another "
            "may lose. The lowest of many means is lower than its true value on average."
        )
    if comparison.cannot_tell:
        told.append(comparison.cannot_tell)
    if (ranks := comparison.ranks) is not None:
        p = "< 0.001" if ranks.p < 0.001 else f"= {ranks.p:.2g}"
        verdict = "the rows are not all alike" if ranks.p <= ALPHA else "it is not shown that any row differs"
        told.append(
            f"Ranks within {ranks.blocks} seeds: Friedman p {p}, so {verdict}; Nemenyi's critical difference for "
            f"{len(ranks.ranks)} rows is {ranks.critical_difference:.2f} ranks."
        )
    return told
