"""The results as one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.resources import files
from typing import TYPE_CHECKING

from mtobal.report.charts import chart_data
from mtobal.report.colours import row_colours
from mtobal.report.explanations import explanations
from mtobal.report.front import main_metrics
from mtobal.report.table import MISSING, Summary, verdict_text

if TYPE_CHECKING:
    from jinja2 import Environment


def page(summary: Summary) -> str:
    """Render the page. Styles, scripts and data are inside; everything that comes from a run is escaped."""
    import yaml
    from plotly.offline import get_plotlyjs

    templates = files("mtobal.report") / "templates"
    runs = summary.experiment.runs
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            summary=summary,
            tasks=[
                (group, sum(column.group == group for column in summary.columns))
                for group in dict.fromkeys(column.group for column in summary.columns if column.group)
            ],
            colours=row_colours(summary),
            charts=chart_data(summary),
            recipe=yaml.safe_dump(summary.experiment.recipe, sort_keys=False, allow_unicode=True)
            if summary.experiment.recipe
            else "",
            versions=_merged(run.versions for run in runs),
            hardware=_merged(run.hardware for run in runs),
            style=templates.joinpath("report.css").read_text("utf-8"),
            script="".join(templates.joinpath(name).read_text("utf-8") for name in ("charts.js", "report.js")),
            plotly=get_plotlyjs(),
            missing=MISSING,
            metrics=main_metrics(summary),
            explanations=explanations(summary),
        )
    )


def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("mtobal.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(duration=_duration, milliseconds=_milliseconds, verdict=verdict_text)
    return environment


def _merged(mappings: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """Merge what the runs say of themselves; where they disagree, all answers are shown."""
    merged: dict[str, dict[str, None]] = {}
    for mapping in mappings:
        for key, value in mapping.items():
            merged.setdefault(key, {})[value] = None
    return {key: ", ".join(values) for key, values in merged.items()}


def _duration(seconds: float) -> str:
    """Write a duration for people.

    Examples
    --------
    >>> [_duration(seconds) for seconds in (4.26, 75, 7322)]
    ['4.3 s', '1 min 15 s', '2 h 2 min']
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.2f}" if seconds < 0.1 else f"{seconds * 1000:.0f}"
