"""Whether the runs of a folder can stand in one table."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mtobal.errors import UsageError

if TYPE_CHECKING:
    from mtobal.bench.records import MetricInfo, RunRecord


def check_agreement(folder: Path, runs: list[RunRecord]) -> None:
    """Refuse runs that cannot stand in one table: a run that is there twice, or other tasks or metrics."""
    seen: set[tuple[str, int]] = set()
    infos: dict[str, MetricInfo] = {}
    first_multi: RunRecord | None = None
    for run in runs:
        where = f"{folder}: run {run.row!r} with seed {run.seed}"
        if (run.row, run.seed) in seen:
            raise UsageError(f"{where} is there twice; delete one of its folders.")
        seen.add((run.row, run.seed))
        names = {info.name for info in run.metric_infos}
        if set(run.test_metrics) != names:
            raise UsageError(
                f"{where} should report {sorted(names)} but has {sorted(run.test_metrics)}; run it again."
            )
        if run.kind == "single" and len(run.tasks) != 1:
            raise UsageError(f"{where} should be a baseline of one task but has {list(run.tasks)}; run it again.")
        for info in run.metric_infos:
            if infos.setdefault(info.name, info) != info:
                raise UsageError(
                    f"{where} describes the metric {info.name!r} otherwise than another run; "
                    "put them in separate folders."
                )
        if run.kind == "multi":
            first_multi = first_multi or run
            if run.tasks != first_multi.tasks or run.metric_infos != first_multi.metric_infos:
                raise UsageError(
                    f"{where} has other tasks or metrics than run {first_multi.row!r} "
                    f"with seed {first_multi.seed}; "
                    "put them in separate folders."
                )
