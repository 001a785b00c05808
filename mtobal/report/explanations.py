"""How intervals and tests came about, in the words that every face of the report prints."""

from __future__ import annotations

from mtobal.report.headline import pairs_in_words
from mtobal.report.statistics import ALPHA, FEWEST_RESAMPLED, FEWEST_SEEDS
from mtobal.report.table import BASELINE, REFERENCE, Summary


def explanations(summary: Summary) -> list[tuple[str, str]]:
    """Say what the intervals and verdicts of this table rest on: what each is, and how it came about."""
    comparison = summary.comparison
    told = [
        (
            "intervals",
            f"95 %, over seeds. From {FEWEST_RESAMPLED} seeds on a bootstrap with expanded percentiles; with "
            f"{FEWEST_SEEDS} to {FEWEST_RESAMPLED - 1} Student's, which takes seeds to be normal, and none for "
            "the mean rank; none at all below. They leave out the uncertainty of the baseline, which shifts all "
            "rows alike.",
        )
    ]
    if (best := summary.best_static) is not None:
        rest = (
            "The others of a sweep this large are its trials, and take no part in the tests: to pick the best of "
            "them by test metrics would be tuning on the test split. "
            if summary.folded
            else ""
        )
        told.append(
            (
                "static weights",
                f"{best.runs[0].row} is the best of the rows of fixed weights by the validation metrics of its "
                f"selected epochs. {rest}What the table says of it are its test metrics.",
            )
        )
    elif summary.folded:
        told.append(
            (
                "static weights",
                "There is nothing to choose the best of the sweep by (no validation split, no record of it, or no "
                "finite metric in it), so it takes no part in the tests.",
            )
        )
    if comparison.cannot_tell:
        told.append(("tests", comparison.cannot_tell))
    elif comparison.pairs:
        told.append(
            (
                "tests",
                f"Two-sided paired t-tests over seeds of {comparison.score}, each p-value corrected for all tests "
                f"of its family (Holm); 'better' and 'worse' stand for p up to {ALPHA}. The families are "
                f"{pairs_in_words(comparison)}, the rows against {REFERENCE}, and the rows against {BASELINE}, "
                "seed by seed. 'Not shown' is no proof that two rows are equal. The tasks of a run are not "
                "counted as repetitions: they share a network, and what one gains another may lose.",
            )
        )
    if (ranks := comparison.ranks) is not None:
        p = "< 0.001" if ranks.p < 0.001 else f"= {ranks.p:.2g}"
        verdict = "the rows are not all alike" if ranks.p <= ALPHA else "it is not shown that any row differs"
        told.append(
            (
                "ranks within a seed",
                f"Friedman's test over {ranks.blocks} seeds: p {p}, so {verdict}. Nemenyi's critical difference "
                f"for {len(ranks.ranks)} rows is {ranks.critical_difference:.2f} ranks.",
            )
        )
    return told
