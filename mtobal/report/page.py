"""The results as one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.resources import files
from typing import TYPE_CHECKING

from mtobal.report.charts import chart_data
from mtobal.report.colours import row_colours
from mtobal.report.cost import cost_table, milliseconds
from mtobal.report.explanations import explanations
from mtobal.report.front import main_metrics
from mtobal.report.gallery import gallery
from mtobal.report.runs import budget, failed, tuned_settings
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
            cost=cost_table(summary),
            layers=list(dict.fromkeys(layer for row in summary.all_rows for layer in row.conflict)),
            gallery=gallery(summary),
            budget=budget(summary),
            tuned=tuned_settings(summary),
            failed=failed(summary),
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
    environment.filters.update(milliseconds=milliseconds, verdict=verdict_text)
    return environment


def _merged(mappings: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """Merge what the runs say of themselves; where they disagree, all answers are shown."""
    merged: dict[str, dict[str, None]] = {}
    for mapping in mappings:
        for key, value in mapping.items():
            merged.setdefault(key, {})[value] = None
    return {key: ", ".join(values) for key, values in merged.items()}
