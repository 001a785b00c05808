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


def row_colours(summary: Summary) -> dict[str, str]:
    """Give each row its colour, in the order of the recipe: the ranking does not change it."""
    names = list(dict.fromkeys(run.row for run in summary.experiment.runs if run.kind == "multi"))
    colours = {name: _colour(index) for index, name in enumerate(names)}
    return {BASELINE: BASELINE_COLOUR, **colours}


def _colour(index: int) -> str:
    if index < len(PALETTE):
        return PALETTE[index]
    # The golden angle keeps further hues apart, however many there are.
    return f"hsl({(index - len(PALETTE)) * 137.508 % 360:.0f}, 55%, 50%)"
