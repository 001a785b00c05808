"""The page in a real browser: it opens fast and without an error, and what can be pressed does what it says."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from mtobal.report import build_report
from report.experiments import BY_HAND, Values, write_experiment, write_large_experiment

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")

# Before the page: gather what goes wrong. After it: act, then leave the answers where they can be read.
WATCH = """<script>
window.errors = [];
addEventListener("error", (event) => errors.push(event.message));
addEventListener("securitypolicyviolation", (event) => errors.push("policy: " + event.violatedDirective));
console.error = (...words) => errors.push(words.join(" "));
</script>"""
ACT = """<script>
const opened = performance.now();
const pause = (ms = 60) => new Promise((done) => setTimeout(done, ms));
const shown = ".results tbody.multi tr:not([hidden]) .name";
const names = () => [...document.querySelectorAll(shown)].map((name) => name.textContent);
const answers = { opened, plotlyAtOnce: Boolean(window.Plotly) };
(async () => {
  // A browser that only dumps its document paints no frame, so no chart comes into view; printing draws them all.
  dispatchEvent(new Event("beforeprint"));
  answers.paper = getComputedStyle(document.body).backgroundColor;
  dispatchEvent(new Event("afterprint"));
  answers.drawn = [...document.querySelectorAll(".plot")].map((plot) => Boolean(plot.querySelector(".main-svg")));
  %s
})().catch((error) => errors.push(String(error))).then(() => {
  const outcome = document.createElement("pre");
  outcome.id = "outcome";
  outcome.textContent = JSON.stringify({ ...answers, errors });
  document.body.append(outcome);
});
</script></body>"""


def act(folder: Path, script: str, *options: str) -> dict[str, Any]:
    """Open the report of a folder, run a script that fills `answers`, and return them."""
    source = (folder / "report.html").read_text(encoding="utf-8")
    page = folder / "acted.html"
    before, _, after = source.rpartition("</body>")
    page.write_text(before.replace("<head>", "<head>" + WATCH, 1) + ACT % script + after, encoding="utf-8")
    assert CHROMIUM is not None
    program = [
        CHROMIUM,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--virtual-time-budget=60000",
        "--dump-dom",
    ]
    program += [f"--user-data-dir={folder / 'profile'}", *options, page.as_uri()]
    run = subprocess.run(program, capture_output=True, text=True, timeout=120, check=True)
    found = re.search(r'<pre id="outcome">(.*?)</pre>', run.stdout, re.DOTALL)
    assert found, run.stderr
    answers: dict[str, Any] = json.loads(unescape(found[1]))
    return answers


LARGE = """
  answers.dark = matchMedia("(prefers-color-scheme: dark)").matches;
  answers.rows = names();
  const change = async (id, value) => {
    const input = document.getElementById(id);
    input.type === "checkbox" ? input.click() : (input.value = value);
    input.dispatchEvent(new Event("change"));
    await pause();
  };
  const count = (chart, within) => document.querySelectorAll(`[data-chart=${chart}] ${within}`).length;
  const lines = () => count("conflict", ".scatterlayer .trace");
  const title = (chart, axis) => document.querySelector(`[data-chart=${chart}] .${axis}title`).textContent;
  answers.lines = lines();
  answers.points = count("trade", ".points path");
  await change("unfold");
  answers.unfolded = [names().length, lines()];
  answers.before = title("cost", "x");
  await change("cost-axis", "memory");
  answers.after = title("cost", "x");
  await change("layer", "3");
  const shownImages = () => [...document.querySelectorAll("[data-image]:not([hidden])")];
  const pictures = () => shownImages().map((each) => each.dataset.image);
  answers.pictures = [pictures()];
  await change("image", "1");
  answers.pictures.push(pictures());
  const images = [...document.querySelectorAll("img")];
  answers.sizes = [...new Set(images.map((image) => `${image.naturalWidth} x ${image.naturalHeight}`))];
  answers.described = images.every((image) => image.alt);
"""


def three_seeds(values: Values) -> Values:
    return {row: [[value + seed * (0.01 + 0.001 * len(row)) for value in seeds[0]] for seed in range(3)]
            for row, seeds in values.items()}  # fmt: skip


def test_everything_that_can_be_pressed_works(tmp_path: Path) -> None:
    hostile = '<img src=x onerror="errors.push(1)">'
    values = BY_HAND | {hostile: [[0.8, 0.5]], "static(weights=[1, 2])": [[0.81, 0.45]]}
    folder = write_experiment(tmp_path, three_seeds(values))
    build_report(folder)
    answers = act(
        folder,
        """
  answers.order = names();
  const buttons = [...document.querySelectorAll("button")];
  const press = (text) => buttons.find((button) => button.textContent.startsWith(text)).click();
  press("accuracy");
  answers.sorted = names();
  press("accuracy");
  answers.reversed = names();
  const lines = () => document.querySelectorAll("[data-chart=losses] .scatterlayer .trace").length;
  answers.lines = lines();
  press("uw"); await pause();
  answers.without = lines();
  answers.pressed = document.querySelector(".legend [aria-pressed=false]").textContent;
  const filter = document.getElementById("filter");
  filter.value = "STATIC"; filter.dispatchEvent(new Event("input")); await pause();
  answers.found = [names(), document.getElementById("found").textContent, lines()];
  const trade = document.querySelector("[data-chart=trade]");
  const title = () => trade.querySelector(".xtitle").textContent;
  answers.before = title();
  const across = document.querySelector("[data-axis=x]");
  across.value = "1"; across.dispatchEvent(new Event("change")); await pause();
  answers.after = title();
  answers.images = document.querySelectorAll("img").length;
        """,
    )
    assert answers["errors"] == [], answers
    assert len(answers["drawn"]) >= 8
    assert all(answers["drawn"])
    assert answers["images"] == 0
    chosen = "static weights, best of 2 on validation"
    assert hostile in answers["order"]
    assert sorted(answers["sorted"]) == sorted(answers["order"])
    assert answers["sorted"][:2] == [
        chosen,
        "ew",
    ]  # the highest accuracy on the left first, by the best of the sweep
    assert [name for name in answers["reversed"] if name != chosen] == answers["sorted"][:0:-1]
    assert answers["pressed"] == "uw"
    assert 0 < answers["without"] < answers["lines"]
    assert sorted(answers["found"][0]) == [chosen, "static(weights=[1, 2])"]
    assert answers["found"][1] == "1 of 5 rows"
    assert 0 < answers["found"][2] < answers["without"]
    assert (answers["before"][:4], answers["after"][:5]) == ("left", "right")


@pytest.mark.slow
def test_forty_rows_of_five_seeds_open_in_two_seconds(tmp_path: Path) -> None:
    folder = write_large_experiment(tmp_path)
    build_report(folder)
    answers = act(folder, LARGE, "--blink-settings=preferredColorScheme=0")
    assert answers["errors"] == []
    # Twelve of the sweep are folded, but for the best of it and in the charts of points.
    assert len(answers["rows"]) == answers["lines"] + 1 == 29
    assert "static weights, best of 13 on validation" in answers["rows"]
    assert answers["points"] == 41
    assert answers["unfolded"] == [41, 40]
    assert (answers["before"], answers["after"]) == ("time of a step, ms", "peak memory, MiB")
    assert answers["pictures"] == [["0"], ["1"]]
    assert answers["sizes"] == ["96 x 72"]
    assert answers["described"]
    assert answers["dark"]
    assert all(answers["drawn"])
    assert answers["opened"] < 2000
    assert answers["paper"] == "rgb(253, 253, 252)"  # paper is light, though the screen is dark
    assert not answers["plotlyAtOnce"]  # the table does not wait for the charts
    assert (folder / "report.html").stat().st_size < 8e6


def test_a_phone_has_no_sideways_scrolling_page(tmp_path: Path) -> None:
    folder = write_experiment(tmp_path, three_seeds(BY_HAND) | {"a" * 120: [[0.8, 0.5]]})
    build_report(folder)
    answers = act(
        folder, "answers.wide = document.documentElement.scrollWidth - innerWidth;", "--window-size=390,844"
    )
    assert answers["wide"] <= 0
