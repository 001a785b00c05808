"""The report files: the same numbers on every face, nothing raw from a run, nothing loaded from elsewhere."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from mtobal.bench.records import Failure, load_experiment, run_folder, save_run
from mtobal.errors import UsageError
from mtobal.report import build_report, console_table, summary_table
from mtobal.report.markdown import escape
from report.experiments import BY_HAND, SECONDS, SELECTION, Values, write_experiment

HOSTILE = "<script>alert('row')</script>"
HOSTILE_TASK = '</script><img src="x" onerror="alert(1)">'


class Page(HTMLParser):
    """What a browser makes of the page: elements with their attributes, tables by caption, scripts, plain text."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.tables: list[list[list[str]]] = []
        self.scripts: list[str] = []
        self.text: list[str] = []
        self._cell: list[str] | None = None
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")
        elif tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self._cell = []

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th") and self._cell is not None:
            self.tables[-1][-1].append(" ".join("".join(self._cell).split()))
            self._cell = None

    def handle_data(self, data: str) -> None:
        if self.cdata_elem == "script":
            self.scripts[-1] += data
        elif self.cdata_elem is None:
            self.text.append(data)
            if self._cell is not None:
                self._cell.append(data)

    @property
    def data(self) -> dict:
        return json.loads(self.scripts[0])


def read_page(folder: Path) -> Page:
    return Page((folder / "report.html").read_text(encoding="utf-8"))


def results(page: Page) -> dict[str, list[str]]:
    return {row[0]: row[1:] for row in page.tables[0][2:]}


def markdown_results(folder: Path) -> dict[str, list[str]]:
    text = (folder / "report.md").read_text(encoding="utf-8")
    table = text.partition("## Cost")[0]
    rows = [
        line.strip("| ").replace("**", "").split(" | ") for line in table.splitlines() if line.startswith("| ")
    ]
    return {row[0]: row[1:] for row in rows[2:]}


def csv_results(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO((folder / "results.csv").read_text(encoding="utf-8"))))


def test_every_face_shows_the_numbers_worked_out_by_hand(tmp_path: Path) -> None:
    folder = write_experiment(tmp_path, BY_HAND, seconds=SECONDS)
    assert build_report(folder) == folder / "report.html"
    expected = {
        "single-task": ["2", "—", "—", "—", "1.30x", "0.8000 ± 0.1414", "0.5000 ± 0.0000"],
        "uw": ["2", "-7.50 ± 0.00", "+7.50 ± 0.00", "1.00", "1.20x", "0.8600 ± 0.0283", "0.5375 ± 0.0177"],
        "ew": ["2", "0.00 ± 7.07", "0.00 ± 7.07", "2.00", "1.00x", "0.8400 ± 0.0566", "0.4750 ± 0.0354"],
    }
    verdicts = {"single-task": ["—", "—"], "uw": ["cannot tell"] * 2, "ew": ["—", "cannot tell"]}
    page = read_page(folder)
    assert results(page) == {row: [*cells[:5], *verdicts[row], *cells[5:]] for row, cells in expected.items()}
    assert list(results(page)) == ["single-task", "uw", "ew"]
    assert markdown_results(folder) == {row: cells + verdicts[row] for row, cells in expected.items()}

    lines = csv_results(folder)
    assert len(lines) == 4 + 4 + 4  # one line a run and metric
    for line in lines:
        seeds, delta_m, delta_p, rank, cost, left, right = expected[line["row"]]
        assert line["seeds"] == seeds
        mean, spread = float(line["value_mean"]), float(line["value_spread"])
        assert f"{mean:.4f} ± {spread:.4f}" == (left if line["task"] == "left" else right)
        assert f"{float(line['cost_ratio']):.2f}x" == cost
        if line["kind"] == "multi":
            for score, text in (("delta_m", delta_m), ("delta_p", delta_p)):
                written_mean, written_spread = text.split(" ± ")
                assert float(line[f"{score}_mean"]) == pytest.approx(float(written_mean), abs=0.005)
                assert f"{float(line[f'{score}_spread']):.2f}" == written_spread
            assert f"{float(line['mean_rank']):.2f}" == rank
        else:
            assert line["delta_m"] == line["mean_rank"] == ""
    first = next(line for line in lines if (line["row"], line["seed"], line["task"]) == ("ew", "0", "left"))
    assert float(first["value"]) == 0.88
    by_seed = [float(line["delta_m"]) for line in lines if (line["row"], line["task"]) == ("ew", "left")]
    assert by_seed == pytest.approx([-5, 5])

    console = Console(width=80, file=io.StringIO())
    console.print(console_table(summary_table(load_experiment(folder))))
    printed = console.file.getvalue()
    for name, cells in expected.items():
        line = next(line for line in printed.splitlines() if line.lstrip().startswith(name))
        assert line.split() == [name, *(cell.replace(" ", "") for cell in cells)]


def test_the_best_values_are_bold_on_page_and_in_markdown(tmp_path: Path) -> None:
    folder = write_experiment(tmp_path, BY_HAND, seconds=SECONDS)
    build_report(folder)
    html = (folder / "report.html").read_text(encoding="utf-8")
    assert "<strong>-7.50</strong>" in html
    assert "<strong>0.8600</strong>" in html
    assert "<strong>0.8000</strong>" not in html  # a baseline does not compete
    assert "| uw | 2 | **-7.50 ± 0.00** |" in (folder / "report.md").read_text(encoding="utf-8")


def test_a_hostile_name_is_shown_and_never_raw(tmp_path: Path) -> None:
    folder = write_experiment(
        tmp_path,
        {HOSTILE: [[0.8, 0.9]], "[bold]uw|`x`": [[0.7, 0.8]]},
        tasks=("left", HOSTILE_TASK),
        unfinished=["<script>gone"],
        failures=[Failure("<script>failed", 0, "<script>reason\n | of two lines", "Traceback: <script>frame")],
        conflict={"all": 0.25, "<script>layer": 0.5},
        also={"config": {"tuned": {"c": "<script>tuned"}}},
        title="<script>title",
        note="</pre><script>recipe",
    )
    build_report(folder)
    html = (folder / "report.html").read_text(encoding="utf-8")
    markdown = (folder / "report.md").read_text(encoding="utf-8")
    for text in (html, markdown):
        for raw in (HOSTILE, HOSTILE_TASK, "<script>", "<img"):
            assert raw not in text.replace(_plotly(), "").replace(f"<script>{_script()}</script>", "")
    assert r"&lt;script&gt;reason \| of two lines" in markdown
    page = read_page(folder)
    shown = " ".join(page.text)
    assert all(f"<script>{text}" in shown for text in ("failed", "reason", "frame", "layer", "tuned"))
    assert [entry["layer"] for entry in page.data["conflict"]] == ["all", "<script>layer"]
    assert set(results(page)) == {HOSTILE, "[bold]uw|`x`"}
    assert {entry["name"] for entry in page.data["rows"]} == set(results(page))
    assert [chart["task"] for chart in page.data["losses"]] == ["left", HOSTILE_TASK]
    assert [attributes for tag, attributes in page.elements if tag == "script"] == [
        {"id": "chart-data", "type": "application/json"},
        {"id": "plotly", "type": "text/plain"},
        {},
    ]
    table = next(line for line in markdown.splitlines() if "uw" in line and line.startswith("|"))
    assert len(re.findall(r"(?<!\\)\|", table)) == 9  # eight columns: the name's bar opens none

    console = Console(width=200, file=io.StringIO())
    console.print(console_table(summary_table(load_experiment(folder))))
    assert "[bold]uw|`x`" in console.file.getvalue()


def _script() -> str:
    templates = files("mtobal.report") / "templates"
    return "".join((templates / name).read_text("utf-8") for name in ("charts.js", "report.js"))


def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    return get_plotlyjs()


def test_the_page_needs_no_network(tmp_path: Path) -> None:
    folder = write_experiment(tmp_path, BY_HAND)
    build_report(folder)
    page = read_page(folder)
    loading = [
        (tag, name, value)
        for tag, attributes in page.elements
        for name, value in attributes.items()
        if name in ("src", "srcset", "href", "data", "poster", "action", "background")
    ]
    assert loading
    assert all(tag == "a" and (value or "").startswith("#") for tag, _, value in loading)
    ids = {attributes["id"] for _, attributes in page.elements if "id" in attributes}
    assert {value[1:] for _, _, value in loading} <= ids
    assert not {tag for tag, _ in page.elements} & {"link", "img", "iframe", "object", "embed", "base"}
    ours = (folder / "report.html").read_text(encoding="utf-8").replace(_plotly(), "")
    assert "http:" not in ours
    assert "https:" not in ours
    assert not re.search(r"@import|url\(", ours)
    policy = next(a["content"] for t, a in page.elements if t == "meta" and "http-equiv" in a)
    assert policy.startswith("default-src 'none';")


def test_one_seed_has_no_spread(tmp_path: Path) -> None:
    folder = write_experiment(tmp_path, {name: seeds[:1] for name, seeds in BY_HAND.items()})
    build_report(folder)
    cells = [cell for row in results(read_page(folder)).values() for cell in row]
    assert not any("±" in cell for cell in cells)
    assert all(line["value_spread"] == "" for line in csv_results(folder))
    assert "With 1 seed no difference between rows can be shown" in " ".join(read_page(folder).text)


def test_without_baselines_the_rest_is_there(tmp_path: Path) -> None:
    folder = write_experiment(tmp_path, {"ew": [[0.8, 0.9]], "uw": [[0.9, 0.8]]})
    build_report(folder)
    page = read_page(folder)
    assert results(page)["ew"][1:3] == ["—", "—"]
    assert results(page)["ew"][3:] == ["1.50", "1.00x", "—", "0.8000", "0.9000"]
    assert "no single-task baseline has finished" in " ".join(page.text)
    assert page.data["cost"] == []
    assert all(line["delta_m"] == "" for line in csv_results(folder))


def test_a_row_that_diverged_is_reported_as_nan(tmp_path: Path) -> None:
    folder = write_experiment(tmp_path, BY_HAND | {"mgda": [[math.nan, 0.5], [0.9, 0.5]]})
    build_report(folder)
    page = read_page(folder)
    assert results(page)["mgda"][1] == "NaN"
    assert ["mgda", "mgda", "0", "NaN", "0.5000", "2", "1", "10.00"] in page.tables[-1]
    assert list(results(page))[-1] == "mgda"
    assert "NaN" not in page.scripts[0]  # which would be no JSON
    line = next(line for line in csv_results(folder) if line["row"] == "mgda")
    assert math.isnan(float(line["value_mean"]))


def test_the_page_says_what_was_run(tmp_path: Path) -> None:
    folder = write_experiment(tmp_path, BY_HAND, unfinished=["mgda"], epochs=17)
    run = load_experiment(folder).runs[-1]
    save_run(run_folder(folder, run.row, run.seed), replace(run, hardware={"cpu": "16 cores"}))
    build_report(folder)
    page = read_page(folder)
    text = " ".join(" ".join(page.text).split())
    for fact in (SELECTION, "mgda/seed-0", "epochs: 17", "torch 2.13.0", "cpu 2 cores, 16 cores"):
        assert fact in text
    runs = page.tables[-1]
    assert len(runs) == 1 + 8
    assert ["ew", "ew", "1", "0.8000", "0.4500", "2", "1", "10.00"] in runs
    assert "mgda/seed-0" in (folder / "report.md").read_text(encoding="utf-8")


def test_memory_conflict_failures_and_budget_are_on_every_face(tmp_path: Path) -> None:
    folder = write_experiment(
        tmp_path,
        BY_HAND,
        failures=[Failure("mgda", seed, "killed by signal 9", "") for seed in range(2)],
        conflict={"all": 0.25, "encoder.stem": 0.5},
        also={"peak_memory_bytes": 3 * 2**19, "training_seconds": 12.0, "budget_seconds": 12.5},
    )
    build_report(folder)
    page, text = read_page(folder), (folder / "report.md").read_text(encoding="utf-8")
    costs = {row[0]: row[1:] for row in page.tables[1]}
    expected = ["10.00", "1.00x", "20", "2", "12.0 s", "1,000", "1.5 ± 0.0", "0.250 ± 0.000"]
    assert costs["uw"] == expected
    assert f"| uw | {' | '.join(expected)} |" in text
    assert costs["single-task"][4:] == ["24.0 s", "2,000", "1.5 ± 0.0", "—"]  # their memory is not added up
    conflict = next(table for table in page.tables if table[0] == ["row", "all", "encoder.stem"])
    assert ["uw", "0.250", "0.500"] in conflict
    for face in (" ".join(" ".join(page.text).split()), text):
        for fact in ("mgda, seeds 0, 1", "killed by signal 9", "12.5 s of training steps for every run"):
            assert fact in face
    document = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    uw = next(row for row in document["rows"] if row["name"] == "uw")
    assert (uw["peak_memory"]["mean"], uw["conflict"]["encoder.stem"]["mean"]) == (1.5, 0.5)
    assert [failure["seed"] for failure in document["failures"]] == [0, 1]
    lines = csv_results(folder)
    assert {line["peak_memory_bytes"] for line in lines if line["kind"] != "failed"} == {str(3 * 2**19)}
    assert {line["conflict"] for line in lines if line["row"] == "uw"} == {"0.25"}
    assert [(line["row"], line["failure"]) for line in lines if line["kind"] == "failed"] == [
        ("mgda", "killed by signal 9")
    ] * 2


def test_only_baselines_make_a_report_too(tmp_path: Path) -> None:
    folder = write_experiment(tmp_path, {"single(left)": [[0.8]], "single(right)": [[0.9]]})
    build_report(folder)
    assert results(read_page(folder)) == {"single-task": ["1", "—", "—", "—", "—", "0.8000", "0.9000"]}


def test_the_same_records_give_the_same_bytes(tmp_path: Path) -> None:
    folder = write_experiment(tmp_path, BY_HAND)
    names = ("report.html", "report.md", "report.json", "results.csv", "differences.csv")
    build_report(folder)
    first = [(folder / name).read_bytes() for name in names]
    build_report(folder)
    assert [(folder / name).read_bytes() for name in names] == first
    assert not list(folder.glob(".*"))


def test_with_many_metrics_the_console_shows_the_scores(tmp_path: Path) -> None:
    tasks = tuple(f"task{index}" for index in range(7))
    folder = write_experiment(tmp_path, {"ew": [[0.5] * 7], "uw": [[0.6] * 7]}, tasks=tasks)
    console = Console(width=80, file=io.StringIO())
    console.print(console_table(summary_table(load_experiment(folder))))
    assert "task0" not in console.file.getvalue()
    assert "The metrics of each task are in the report." in " ".join(console.file.getvalue().split())


def test_a_folder_without_runs_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="expected finished runs"):
        build_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_report_loads_no_training_library(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from mtobal.report import build_report; "
        f"build_report(Path({str(write_experiment(tmp_path, BY_HAND))!r})); "
        "print(sorted({'lightning', 'torchmetrics', 'cvxpy', 'sklearn', 'pandas'} & sys.modules.keys()))"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def spread_out(rows: Values, seeds: int) -> Values:
    """Give every row further seeds with noise of its own."""
    generator = np.random.default_rng(0)
    return {
        row: [[value + float(generator.normal(0, 0.003)) for value in values[0]] for _ in range(seeds)]
        for row, values in rows.items()
    }


STRATEGIES = BY_HAND | {"pcgrad": [[0.9, 0.6]], HOSTILE: [[0.6, 0.4]], "static(weights=[1, 2])": [[0.8, 0.51]]}


@pytest.mark.parametrize("seeds", [5, 6])
def test_intervals_and_verdicts_are_the_same_on_every_face(tmp_path: Path, seeds: int) -> None:
    folder = write_experiment(tmp_path, spread_out(STRATEGIES, seeds), seconds=SECONDS)
    build_report(folder)
    page, pasted = read_page(folder), markdown_results(folder)
    document = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    tests = list(csv.DictReader(io.StringIO((folder / "differences.csv").read_text(encoding="utf-8"))))
    lines = csv_results(folder)
    against_ew = {test["first"]: test for test in tests if test["family"] == "against ew"}

    assert document["headline"] in " ".join(page.text)
    assert {line["row"] for line in lines if line["best_static"] == "True"} == {document["best_static"]}
    chosen = f"static weights, best of 2 on validation {document['best_static']}"
    assert {row["name"] for row in document["rows"]} | {chosen} == set(results(page))
    assert results(page)[chosen] == results(page)[document["best_static"]]
    for row in document["rows"]:
        cells = results(page)[row["name"]]
        line = next(line for line in lines if line["row"] == row["name"])
        if row["kind"] == "baseline":
            continue
        delta = row["cells"]["delta_m"]
        low, high = delta["interval"]
        assert cells[1] == f"{delta['mean']:+.2f} ± {delta['spread']:.2f} [{low:+.2f}, {high:+.2f}]"
        assert (float(line["delta_m_low"]), float(line["delta_m_high"])) == (low, high)
        ranks = row["cells"]["mean_rank"]["interval"]
        assert (ranks is None) == (seeds < 6) == (line["mean_rank_low"] == "")
        if row["name"] in against_ew:
            test = against_ew[row["name"]]
            assert cells[5].startswith(test["verdict"])
            assert float(test["difference"]) == pytest.approx(delta["mean"] - mean_of(document, "ew"))
        written = pasted[escape(row["name"])]
        assert written[:5] == cells[:5]
        assert written[-2:] == cells[5:7]
    assert len(tests) == 10 + 4 + 5
    assert {pair["first"] for pair in document["comparison"]["pairs"]} <= set(results(page))
    assert len(document["runs"]) == len(load_experiment(folder).runs)
    assert document["runs"][0]["epochs"][0]["train_losses"]
    assert len(document["coverages"]) == 1


def mean_of(document: dict, name: str) -> float:
    return next(row for row in document["rows"] if row["name"] == name)["cells"]["delta_m"]["mean"]


def test_the_page_shows_which_rows_differ(tmp_path: Path) -> None:
    folder = write_experiment(tmp_path, spread_out(STRATEGIES, 5), seconds=SECONDS)
    build_report(folder)
    page = read_page(folder)
    names = [row["name"] for row in page.data["rows"]]
    ranked = [name for name in results(page) if name in names[1:]]
    assert [names[point["row"]] for point in page.data["ranks"]["points"]] == ranked
    verdicts = {
        (names[first], names[second]): verdict for first, second, _, verdict, _ in page.data["pairs"]["tests"]
    }
    assert verdicts["pcgrad", HOSTILE] == "better"
    assert {row["name"] for row in page.data["rows"] if row["static"]} == {"ew", "static(weights=[1, 2])"}
    text = " ".join(" ".join(page.text).split())
    assert re.search(r"Friedman's test over 5 seeds: p [<=] 0\.\d+, so the rows are not all alike", text)
    assert "other strategies are shown to be better than the static weights, best of 2 on validation" in text


def test_rows_that_ranks_do_not_tell_apart_are_not_said_to_differ(tmp_path: Path) -> None:
    alike = dict.fromkeys(("ew", "uw", "pcgrad"), BY_HAND["ew"][:1])
    folder = write_experiment(tmp_path, spread_out(alike, 5))
    assert "so it is not shown that any row differs" in build_report(folder).with_suffix(".md").read_text("utf-8")


def test_tables_and_charts_speak_to_a_screen_reader(tmp_path: Path) -> None:
    folder = write_experiment(tmp_path, spread_out(STRATEGIES, 5), seconds=SECONDS)
    build_report(folder)
    page = read_page(folder)
    tags = [tag for tag, _ in page.elements]
    assert tags.count("table") == tags.count("caption") == len(page.tables)
    assert all(attributes.get("scope") for tag, attributes in page.elements if tag == "th")
    plots = [attributes for _, attributes in page.elements if attributes.get("class", "") in ("plot", "plot tall")]
    assert plots
    assert all(plot["role"] == "img" and plot["aria-label"] for plot in plots)
    scrolled = [attributes for _, attributes in page.elements if attributes.get("class") == "scroll"]
    assert all(region["tabindex"] == "0" and region["aria-label"] for region in scrolled)
