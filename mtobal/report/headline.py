"""What the data show and what they do not, in sentences that follow from the numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence

from mtobal.bench.records import Experiment
from mtobal.report.comparison import Comparison, Verdict
from mtobal.report.static import static_rows
from mtobal.report.table import REFERENCE, SummaryRow

MOST_NAMES = 4


def headline(
    rows: Sequence[SummaryRow], comparison: Comparison, no_delta: str, best_static: SummaryRow | None
) -> str:
    """Say what the data show, and no more than that.

    Parameters
    ----------
    rows
        The multi-task rows that compete, best first.
    comparison
        Their tests.
    no_delta
        Why there is no ``delta_m``; empty where there is one.
    best_static
        The fixed weights that are best on validation, if there are some to choose among.
    """
    if not rows:
        return "No multi-task row has finished yet."
    if no_delta:
        return " ".join(
            filter(None, [f"There is no delta_m: {no_delta}.", _by_rank(rows), comparison.cannot_tell])
        )
    finite = [row for row in rows if math.isfinite(row.mean("delta_m"))]
    if not finite:
        return "No row has a finite delta_m: every one diverged in at least one metric of at least one seed."
    best = finite[0]
    cell = best.cells["delta_m"]
    side = {"+": "worse than", "-": "better than"}.get(percent(cell.mean)[0], "equal to")
    size = f"{percent(cell.mean)} over {_seeds(cell.n)}, {side} the single-task networks on average"
    size += _against_baseline(best, comparison, side)
    if len(rows) == 1:
        return f"{best.name} is the only multi-task row: delta_m {size}."
    sentences = [f"{best.name} has the lowest delta_m of {len(rows)} rows ({size})."]
    if comparison.cannot_tell:
        sentences.append(comparison.cannot_tell)
    else:
        sentences += [_against_others(best, rows, comparison), _static_weights(rows, comparison, best_static)]
    return " ".join(filter(None, sentences))


def percent(value: float) -> str:
    """Write a signed percentage."""
    rounded = round(value, 2)
    return f"{rounded:+.2f} %" if rounded else "0.00 %"


def _by_rank(rows: Sequence[SummaryRow]) -> str:
    ranked = [row for row in rows if "mean_rank" in row.cells]
    if not ranked:
        return ""
    lowest = min(row.mean("mean_rank") for row in ranked)
    names = [row.name for row in ranked if row.mean("mean_rank") == lowest]
    verb = "have" if len(names) > 1 else "has"
    return f"By mean rank over the metrics, {_listed(names)} {verb} the lowest ({lowest:.2f})."


def _against_baseline(best: SummaryRow, comparison: Comparison, side: str) -> str:
    verdict = next(
        (pair.verdict for pair in comparison.against_baseline if pair.first == best.name), "cannot tell"
    )
    if verdict == "cannot tell":
        return ""
    if verdict == "not shown":
        return ", but not beyond what seeds do"
    # The test holds each seed against the baseline of that seed, and not against the mean of all baselines.
    return ", and beyond what seeds do" if side.startswith(verdict) else f", but {verdict} seed by seed"


def _against_others(best: SummaryRow, rows: Sequence[SummaryRow], comparison: Comparison) -> str:
    """Say from how many rows the seeds tell the best one, and whether equal weighting is among them."""
    verdicts = {row.name: comparison.between(best.name, row.name) for row in rows if row is not best}
    if worse := [name for name, verdict in verdicts.items() if verdict == "worse"]:
        whom = _listed(worse) if len(worse) <= MOST_NAMES else f"{len(worse)} other rows"
        return f"But on the seeds that both have, it is worse than {whom}, beyond what seeds do."
    shown = [name for name, verdict in verdicts.items() if verdict == "better"]
    open_ = [name for name, verdict in verdicts.items() if verdict != "better"]
    tests = f"Paired over seeds and corrected for {pairs_in_words(comparison)}"
    if not shown:
        whom = f"any of the other {len(open_)} rows" if len(open_) > 1 else open_[0]
        sentence = f"{tests}, the seeds do not tell it from {whom}"
    elif not open_:
        whom = f"all other {len(shown)} rows" if len(shown) > 1 else shown[0]
        sentence = f"{tests}, it is better than {whom} beyond what seeds do"
    else:
        sentence = (
            f"{tests}, it is better than {len(shown)} of the other {len(verdicts)} rows beyond what seeds do, "
            f"and not told from {_listed(open_) if len(open_) <= MOST_NAMES else f'the {len(open_)} others'}"
        )
    return f"{sentence}{_reference(verdicts, rows)}."


def _reference(verdicts: dict[str, Verdict], rows: Sequence[SummaryRow]) -> str:
    if REFERENCE not in verdicts:
        return (
            ""
            if any(row.name == REFERENCE for row in rows)
            else f"; there is no row {REFERENCE} to hold it against"
        )
    delta = percent(next(row for row in rows if row.name == REFERENCE).mean("delta_m"))
    if len(verdicts) == 1:
        return f" ({delta})"
    place = "among the former" if verdicts[REFERENCE] == "better" else "not told from it"
    return f"; {REFERENCE} ({delta}) is {place}"


def _static_weights(rows: Sequence[SummaryRow], comparison: Comparison, best: SummaryRow | None) -> str:
    """Say how many strategies beat the static weights that validation chooses, once there is a choice."""
    static = {row.name for row in static_rows(rows)}
    others = [row for row in rows if row.name not in static]
    if best is None or not others:
        return ""
    name = best.runs[0].row
    verdicts = [comparison.between(row.name, name) for row in others]
    if all(verdict == "cannot tell" for verdict in verdicts):
        return ""
    better = verdicts.count("better")
    if len(others) == 1:
        count = "The other strategy is" if better else "The other strategy is not"
    else:
        count = f"{better or 'None'} of the {len(others)} other strategies {'is' if better < 2 else 'are'}"
    return f"{count} shown to be better than the {best.name}: {name} ({percent(best.mean('delta_m'))})."


def pairs_in_words(comparison: Comparison) -> str:
    """Say for how many pairs of rows the p-values are corrected."""
    n = sum(pair.adjusted is not None for pair in comparison.pairs)
    return f"all {n} pairs" if n > 1 else "one pair"


def _listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def _seeds(n: int) -> str:
    return f"{n} seed" if n == 1 else f"{n} seeds"


def notes(experiment: Experiment, rows: Sequence[SummaryRow], metrics: Sequence[str]) -> list[str]:
    """Say what a reader has to know before trusting the table."""
    told = []
    if experiment.unfinished:
        told.append(f"Not finished, and not in the table: {', '.join(experiment.unfinished)}.")
    failed: dict[str, list[str]] = {}
    for failure in experiment.failures:
        failed.setdefault(failure.row, []).append(str(failure.seed))
    if failed:
        runs = [f"{row}, seed{'s' * (len(seeds) > 1)} {', '.join(seeds)}" for row, seeds in failed.items()]
        told.append(f"Failed, and not in the table: {'; '.join(runs)}.")
    planned = [str(strategy) for strategy in experiment.recipe.get("strategies") or ()]
    if absent := [name for name in planned if name not in {row.name for row in rows} and name not in failed]:
        told.append(f"In the recipe, but without a finished run: {', '.join(absent)}.")
    if rows and all(row.name != REFERENCE for row in rows):
        told.append(f"There is no row {REFERENCE}, so the time of a step has nothing to be compared with.")
    if len({row.seeds for row in rows}) > 1:
        told.append("Rows were run with different seeds; compare them with care.")
    if diverged := [row.name for row in rows if any(math.isnan(row.mean(name)) for name in metrics)]:
        told.append(f"NaN in at least one metric of at least one seed: {', '.join(diverged)}.")
    return told
