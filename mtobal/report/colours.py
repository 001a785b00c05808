"""One colour a row, the same in every chart."""

from __future__ import annotations

from mtobal.report.table import BASELINE, Summary

# Hues that colour-blind readers can tell apart come first, and all of them stand out on white and on black.
PALETTE = (
    "#0a7cc4",
    "#d55e00",
    "#009e73",
    "#c65f9f",
    "#d99000",
    "#7b68c8",
    "#4aa8d8",
    "#a6761d",
    "#6a9a1f",
    "#d6336c",
)
BASELINE_COLOUR = "#8a8f98"
SWEEP_COLOUR = "#7f9a8e"


def row_colours(summary: Summary) -> dict[str, str]:
    """Give each row its colour, in the order of the recipe: the ranking does not change it.

    The rows of a large sweep share one.
    """
    names = dict.fromkeys(run.row for run in summary.experiment.runs if run.kind == "multi")
    told_apart = [name for name in names if name not in summary.folded]
    colours = {name: _colour(index) for index, name in enumerate(told_apart)}
    colours |= dict.fromkeys(summary.folded, SWEEP_COLOUR)
    if (best := summary.best_static) is not None:
        colours[best.name] = colours[best.runs[0].row]
    return {BASELINE: BASELINE_COLOUR, **colours}


def _colour(index: int) -> str:
    if index < len(PALETTE):
        return PALETTE[index]
    # The golden angle keeps further hues apart, however many there are.
    return f"hsl({(index - len(PALETTE)) * 137.508 % 360:.0f}, 55%, 50%)"
