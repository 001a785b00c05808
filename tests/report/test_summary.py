"""The results table against numbers worked out by hand, and what the headline claims."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from mtobal.bench.records import load_experiment, run_folder, save_run
from mtobal.report.charts import chart_data
from mtobal.report.curves import weights
from mtobal.report.front import coverages
from mtobal.report.summary import summary_table
from mtobal.report.table import Statistic, Summary, SummaryRow
from report.experiments import BY_HAND, SECONDS, Values, make_run, write_experiment


def summarise(folder: Path) -> Summary:
    return summary_table(load_experiment(folder))


def row(summary: Summary, name: str) -> SummaryRow:
    return next(row for row in summary.all_rows if row.name == name)


def flat(**deltas: list[float]) -> Values:
    """Rows of two tasks whose delta_m by seed, against baselines of 0.5, are those given in percent."""
    rows: dict = {"single(left)": [[0.5]] * 2, "single(right)": [[0.5]] * 2}
    return rows | {name: [[0.5 * (1 - delta / 100)] * 2 for delta in seeds] for name, seeds in deltas.items()}


def test_the_table_equals_the_one_worked_out_by_hand(tmp_path: Path) -> None:
    summary = summarise(write_experiment(tmp_path, BY_HAND, seconds=SECONDS))
    assert [row.name for row in summary.all_rows] == ["single-task", "uw", "ew"]
    ew, uw, single = row(summary, "ew"), row(summary, "uw"), row(summary, "single-task")

    assert ew.cells["left/accuracy"].mean == pytest.approx(0.84)
    assert ew.cells["left/accuracy"].spread == pytest.approx(0.08 / math.sqrt(2))
    assert ew.cells["delta_m"].values == pytest.approx((-5, 5))
    assert ew.cells["delta_m"].mean == pytest.approx(0)
    assert ew.cells["delta_m"].spread == pytest.approx(math.sqrt(50))
    assert ew.cells["delta_p"].values == pytest.approx((5, -5))
    assert uw.cells["delta_m"].values == pytest.approx((-7.5, -7.5))
    assert uw.cells["delta_m"].spread == pytest.approx(0)
    assert uw.cells["mean_rank"].values == (1.0,)
    assert ew.cells["mean_rank"].values == (2.0,)
    assert uw.cells["cost_ratio"].mean == pytest.approx(1.2)

    assert single.cells["left/accuracy"].values == (0.7, 0.9)
    assert single.cells["right/accuracy"].values == (0.5, 0.5)
    assert single.cells["cost_ratio"].mean == pytest.approx(1.3)
    assert not single.cells.keys() & {"delta_m", "delta_p", "mean_rank"}
    assert (single.steps, single.parameters, single.training_seconds) == (40, 2000, 6)
    assert (ew.steps, ew.parameters, ew.training_seconds) == (20, 1000, 3)
    assert [row.seed_count for row in summary.all_rows] == ["2", "2", "2"]


def test_the_best_of_a_column_is_the_best_as_it_is_written(tmp_path: Path) -> None:
    summary = summarise(write_experiment(tmp_path, BY_HAND | {"pcgrad": [[0.84, 0.6], [0.88 - 1e-7, 0.6]]}))
    best = {
        column.key: {row.name for row in summary.all_rows if summary.is_best(row, column)}
        for column in summary.columns
    }
    assert best["left/accuracy"] == {"uw", "pcgrad"}  # not the baseline, though 0.9 is among its seeds
    assert best["right/accuracy"] == best["delta_m"] == best["delta_p"] == {"pcgrad"}
    assert best["cost_ratio"] == {"ew", "uw", "pcgrad"}
    alone = summarise(write_experiment(tmp_path / "alone", {"ew": [[0.8, 0.9]]}))
    assert not any(alone.is_best(alone.rows[0], column) for column in alone.columns)


def test_delta_m_and_delta_p_weigh_metrics_and_tasks(tmp_path: Path) -> None:
    tasks = ("left", "right", "middle")
    values = {f"single({task})": [[0.5]] for task in tasks} | {"ew": [[0.5, 0.6, 0.45]]}
    summary = summarise(write_experiment(tmp_path, values, tasks=tasks))
    assert row(summary, "ew").cells["delta_m"].mean == pytest.approx(-10 / 3)
    assert row(summary, "ew").cells["delta_p"].mean == pytest.approx(10 / 3)


def test_an_interval_is_students() -> None:
    low, high = Statistic((1.0, 2.0, 3.0)).interval or (0, 0)
    assert (low, high) == pytest.approx((2 - 4.30265 / math.sqrt(3), 2 + 4.30265 / math.sqrt(3)), abs=1e-4)
    assert Statistic((1.0, 2.0)).interval is None
    assert Statistic((1.0,)).spread is None
    assert Statistic((1.0, math.nan, 2.0)).interval is None


@pytest.mark.parametrize(
    ("rows", "claims"),
    [
        (
            flat(ew=[1.0, 1.1, 0.9], uw=[-1.0, -1.1, -0.9]),
            [
                "uw has the lowest delta_m of 2 rows (-1.00 % over 3 seeds, better than",
                "corrected for one pair, it is better than ew beyond what seeds do (+1.00 %).",
            ],
        ),
        (
            flat(ew=[1.0, 2.0, 3.0], uw=[0.5, 2.5, 1.5]),
            [
                "uw has the lowest",
                "worse than the single-task",
                "the seeds do not tell it from ew (+2.00 %).",
            ],
        ),
        (
            flat(ew=[5.0, 5.1, 4.9], uw=[-1.0, -1.1, -0.9], **{f"r{n}": [-2.0, 1.0, -1.5] for n in range(5)}),
            [
                "it is better than 1 of the other 6 rows beyond what seeds do, and not told from the 5 others; "
                "ew (+5.00 %) is among the former."
            ],
        ),
        (
            flat(ew=[5.0, 5.1, 4.9], uw=[-1.0, -1.1, -0.9], dwa=[-2.0, 1.0, -1.5], si=[-2.0, 1.5, -1.5]),
            ["better than 1 of the other 3 rows beyond what seeds do, and not told from dwa and si; ew"],
        ),
        (
            flat(ew=[1.0, 1.0], uw=[-9.0, -9.0]),
            ["uw has", "With 2 seeds no difference between rows can be shown"],
        ),
        (flat(ew=[1.0], uw=[-9.0]), ["With 1 seed no difference between rows can be shown; it takes 3 or more."]),
        (flat(ew=[-1.0] * 3, uw=[2.0] * 3), ["ew has the lowest delta_m", "no difference varies over seeds"]),
        (
            flat(pcgrad=[-1.0, -1.1, -1.2], uw=[2.0, 2.1, 1.9]),
            ["pcgrad has the lowest", "better than uw", "there is no row ew to hold it against."],
        ),
        (flat(ew=[-1.0] * 3), ["ew is the only multi-task row: delta_m -1.00 % over 3 seeds"]),
        (flat(ew=[math.nan], uw=[math.nan]), ["No row has a finite delta_m"]),
        (flat(), ["No multi-task row has finished yet."]),
        (
            {"ew": [[0.8, 0.9]], "uw": [[0.7, 0.8]]},
            ["There is no delta_m: no single-task baseline has finished.", "ew has the lowest (1.00)"],
        ),
        (
            {"single(left)": [[0.8]], "ew": [[0.8, 0.9]]},
            ["There is no delta_m: the single-task baseline of right has not finished."],
        ),
        (
            {"single(left)": [[0.0]], "single(right)": [[0.5]], "ew": [[0.8, 0.9]]},
            ["the single-task baseline of left/accuracy is 0"],
        ),
    ],
)
def test_the_headline_claims_what_the_seeds_show(tmp_path: Path, rows: Values, claims: list[str]) -> None:
    headline = summarise(write_experiment(tmp_path, rows)).headline
    assert all(claim in headline for claim in claims), headline


def test_the_headline_does_not_contradict_tests_on_fewer_seeds(tmp_path: Path) -> None:
    """The mean over all seeds ranks the rows; tests use the seeds that two of them, or row and baseline, share."""
    shared = [0.50, 0.51, 0.52]
    rows = {
        "single(left)": [[value] for value in (*shared, 0.9, 0.9, 0.9)],
        "single(right)": [[value] for value in (*shared, 0.9, 0.9, 0.9)],
        "ew": [[value + 0.03] * 2 for value in shared],
        "uw": [[value + 0.01 + 0.001 * seed] * 2 for seed, value in enumerate((*shared, 0.9, 0.9, 0.9))],
    }
    headline = summarise(write_experiment(tmp_path, rows)).headline
    assert "uw has the lowest delta_m of 2 rows" in headline
    assert "But on the seeds that both have, it is worse than ew, beyond what seeds do." in headline
    alone = {name: seeds for name, seeds in rows.items() if name != "uw"}
    headline = summarise(write_experiment(tmp_path / "alone", alone)).headline
    assert "worse than the single-task networks on average, but better seed by seed" in headline


def test_ranks_of_uneven_seeds_have_no_interval_and_part_of_a_baseline_no_cost(tmp_path: Path) -> None:
    rows = {"ew": [[0.8, 0.9]] * 7, "uw": [[0.9, 0.95]] * 6, "single(left)": [[0.8]] * 2}
    summary = summarise(write_experiment(tmp_path, rows))
    assert [row.name for row in summary.rows] == ["uw", "ew"]  # there is no delta_m: the mean rank orders them
    assert row(summary, "ew").cells["mean_rank"].interval is None
    assert "cost_ratio" not in row(summary, "single-task").cells


def test_memory_is_told_where_every_run_has_it(tmp_path: Path) -> None:
    folder = write_experiment(tmp_path, BY_HAND, also={"peak_memory_bytes": 2**20})
    assert {each.peak_memory.mean for each in summarise(folder).all_rows if each.peak_memory} == {1.0}
    for name in ("ew", "single(left)"):
        run = next(run for run in load_experiment(folder).runs if run.row == name)
        save_run(run_folder(folder, name, run.seed), replace(run, peak_memory_bytes=None))
    known = {each.name: each.peak_memory is not None for each in summarise(folder).all_rows}
    assert known == {"single-task": False, "uw": True, "ew": False}


def test_the_headline_does_not_count_strategies_that_cannot_be_tested(tmp_path: Path) -> None:
    static = {"static(weights=[1, 2])": [2.0, 2.1, 1.8]}
    for tested, uw in ((False, [math.nan, 1.0, 1.0]), (True, [1.0, 1.3, 1.0])):
        rows = flat(ew=[1.0, 1.1, 0.9], uw=uw, **static)
        headline = summarise(write_experiment(tmp_path / str(tested), rows)).headline
        assert ("The other strategy is not shown to be better than the static weights" in headline) == tested


def test_what_makes_a_table_doubtful_is_said(tmp_path: Path) -> None:
    rows = {"uw": [[0.8, math.nan], [0.8, 0.8]], "pcgrad": [[0.7, 0.7]]}
    summary = summarise(
        write_experiment(tmp_path, rows, unfinished=["mgda"], strategies=["uw", "pcgrad", "nash_mtl"])
    )
    notes = " ".join(summary.notes)
    assert "Not finished, and not in the table: mgda/seed-0." in notes
    assert "In the recipe, but without a finished run: nash_mtl." in notes
    assert "There is no row ew" in notes
    assert "Rows were run with different seeds" in notes
    assert "NaN in at least one metric of at least one seed: uw." in notes


def test_as_many_seeds_are_not_the_same_seeds(tmp_path: Path) -> None:
    folder = write_experiment(tmp_path, {"ew": [[0.8, 0.9]], "uw": []})
    (run,) = load_experiment(folder).runs
    save_run(run_folder(folder, "uw", 1), replace(run, row="uw", seed=1))
    assert "Rows were run with different seeds; compare them with care." in summarise(folder).notes


def test_a_sound_table_has_no_notes(tmp_path: Path) -> None:
    assert summarise(write_experiment(tmp_path, BY_HAND)).notes == ()


def test_nan_and_missing_values_are_written_as_such(tmp_path: Path) -> None:
    summary = summarise(write_experiment(tmp_path, BY_HAND | {"mgda": [[math.nan, 0.5], [0.9, 0.5]]}))
    mgda, columns = row(summary, "mgda"), {column.key: column for column in summary.columns}
    assert columns["left/accuracy"].text(mgda.cells["left/accuracy"]) == "NaN"
    assert columns["delta_m"].text(mgda.cells["delta_m"]) == "NaN"
    assert columns["delta_m"].text(None) == "—"
    assert [row.name for row in summary.rows][-1] == "mgda"
    assert mgda.cells["mean_rank"].mean > 2  # last on the left, second on the right


def test_numbers_are_written_with_four_digits_of_the_largest(tmp_path: Path) -> None:
    values = {"single(left)": [[27.77]], "single(right)": [[0.0125]], "ew": [[33.83, 0.0161]]}
    summary = summarise(write_experiment(tmp_path, values))
    written = {column.key: column.value(row(summary, "ew").cells.get(column.key)) for column in summary.columns}
    assert written["left/accuracy"] == "33.83"
    assert written["right/accuracy"] == "0.01610"
    assert written["cost_ratio"] == "1.00x"


def test_charts_draw_the_mean_over_seeds_and_the_share_of_the_weights(tmp_path: Path) -> None:
    data = chart_data(summarise(write_experiment(tmp_path, BY_HAND)))
    assert [entry["name"] for entry in data["rows"]] == ["single-task", "uw", "ew"]
    left, right = data["losses"]
    assert (left["task"], right["task"]) == ("left", "right")
    assert left["lines"][1] == {"row": 1, "epochs": [0, 1], "train": [1, 0.5], "validation": [2.5, 1.5]}
    assert [line["row"] for line in right["lines"]] == [0, 1, 2]
    assert data["weights"][1]["lines"][0] == {
        "row": 1,  # the baseline has one task, and nothing to divide
        "epochs": [0, 1],
        "applied": [2, 2],
        "share": [0.66667, 0.66667],
    }
    assert [point["row"] for point in data["cost"]] == [1, 2]
    assert list(data["cost"][1]["range"].values()) == pytest.approx([-math.sqrt(50), math.sqrt(50)])  # the spread
    assert data["cost"][0]["time"] == {"value": 10, "low": 10, "high": 10}  # milliseconds


def test_a_share_of_the_weights_keeps_its_sign() -> None:
    record = replace(
        make_run("uw", 0, ("left", "right"), (0.5, 0.5), 0.01).epochs[0], weights={"left": -1, "right": 3}
    )
    assert weights(record, "left") == {"applied": -1, "share": -0.25}


def test_a_row_keeps_its_colour_when_the_ranking_changes(tmp_path: Path) -> None:
    def colours(folder: Path) -> dict[str, str]:
        return {entry["name"]: entry["colour"] for entry in chart_data(summarise(folder))["rows"]}

    first = colours(write_experiment(tmp_path, flat(ew=[1.0], uw=[2.0])))
    assert colours(write_experiment(tmp_path, flat(ew=[2.0], uw=[1.0]))) == first
    many = colours(write_experiment(tmp_path, flat(**{f"row{index}": [1.0] for index in range(30)})))
    assert len(set(many.values())) == len(many)


def test_coverage_is_the_hypervolume_worked_out_by_hand(tmp_path: Path) -> None:
    rows = {"ew": [[0.0, 1.0]], "static(weights=[1, 2])": [[1.0, 0.0]], "uw": [[0.5, 0.5]]}
    (coverage,) = coverages(summarise(write_experiment(tmp_path, rows)))
    assert (coverage.x, coverage.y) == ("left/accuracy", "right/accuracy")
    assert coverage.static == pytest.approx((2 * 0.1 * 1.1 - 0.1**2) / 1.1**2)
    assert coverage.everything == pytest.approx((2 * 0.1 * 1.1 - 0.1**2 + 0.5**2) / 1.1**2)


def test_coverage_leaves_out_what_diverged_and_what_does_not_differ(tmp_path: Path) -> None:
    assert coverages(summarise(write_experiment(tmp_path / "a", {"uw": [[0.5, 0.5]], "si": [[0.5, 0.6]]}))) == []
    rows = {"uw": [[0.5, 0.6]], "si": [[0.6, 0.5]], "mgda": [[math.nan, 0.9]]}
    (coverage,) = coverages(summarise(write_experiment(tmp_path / "b", rows)))
    assert coverage.static is None
    assert coverage.everything == pytest.approx((2 * 0.1 * 1.1 - 0.1**2) / 1.1**2)
