"use strict";
(() => {
  const data = JSON.parse(document.getElementById("chart-data").textContent);
  const hidden = new Set(); // rows switched off in the legend
  const filtered = new Set(); // rows whose name does not hold what the reader looks for
  const splits = new Set();
  const folded = new Set(data.rows.flatMap((row, index) => (row.folded ? [index] : []))); // a sweep, for the most part
  const drawn = new Map(); // plot element -> its traces

  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const charts = chartDrawings(data, colour);

  const filter = document.getElementById("filter");
  const unfold = document.getElementById("unfold");
  const wanted = () => filter.value.trim().toLowerCase();
  // Who looks for a row finds it in the sweep too.
  const folds = () => unfold !== null && !unfold.checked && !wanted();

  const visible = ({ meta }) =>
    !hidden.has(meta.row) &&
    !filtered.has(meta.row) &&
    (!meta.split || splits.has(meta.split)) &&
    (meta.cloud || !folds() || !folded.has(meta.row));

  // Plotly takes longer to start than all the rest of the page, so it waits until a chart comes near.
  function startPlotly() {
    if (window.Plotly) return;
    const script = document.createElement("script");
    script.textContent = document.getElementById("plotly").textContent;
    document.head.append(script);
  }

  function draw(element) {
    startPlotly();
    const [traces, look] = charts[element.dataset.chart](Number(element.dataset.index));
    drawn.set(element, traces);
    for (const trace of traces) trace.visible = visible(trace);
    Plotly.react(element, traces, look, { responsive: true, displayModeBar: false });
  }

  function showVisible() {
    for (const [element, traces] of drawn) Plotly.restyle(element, { visible: traces.map(visible) });
    for (const button of legend.querySelectorAll("[data-row]")) {
      button.setAttribute("aria-pressed", String(!hidden.has(Number(button.dataset.row))));
      const row = Number(button.dataset.row);
      button.hidden = filtered.has(row) || (folds() && folded.has(row));
    }
    // What a link leads to should not lie beneath the legend.
    document.documentElement.style.setProperty("--legend", `${legend.offsetHeight}px`);
  }

  const legend = document.querySelector(".legend");
  function legendButton(text, press) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(text);
    button.addEventListener("click", () => {
      press();
      showVisible();
    });
    legend.append(button);
    return button;
  }
  data.rows.forEach((row, index) => {
    const button = legendButton(row.name, () => hidden.delete(index) || hidden.add(index));
    button.dataset.row = index;
    button.setAttribute("aria-pressed", "true");
    const swatch = document.createElement("span");
    swatch.className = "swatch";
    swatch.style.background = row.colour;
    button.prepend(swatch);
  });
  legendButton("all", () => hidden.clear()).className = "plain";
  legendButton("none", () => data.rows.forEach((_, index) => hidden.add(index))).className = "plain";
  legend.hidden = false;

  for (const box of document.querySelectorAll("[data-split]")) {
    const read = () => (box.checked ? splits.add(box.dataset.split) : splits.delete(box.dataset.split));
    read();
    box.addEventListener("change", () => {
      read();
      showVisible();
    });
  }

  function look() {
    const matches = (name) => name.toLowerCase().includes(wanted());
    filtered.clear();
    data.rows.forEach((row, index) => matches(row.name) || filtered.add(index));
    for (const line of document.querySelectorAll("tr[data-name]")) {
      line.hidden = !matches(line.dataset.name) || (folds() && "folded" in line.dataset);
    }
    document.getElementById("found").textContent = wanted()
      ? `${data.rows.length - filtered.size} of ${data.rows.length} rows`
      : "";
    showVisible();
  }
  filter.closest("p").hidden = false;
  filter.addEventListener("input", look);
  if (unfold) unfold.addEventListener("change", look);
  look();

  const pictured = document.getElementById("image");
  if (pictured) {
    const show = () => {
      for (const picture of document.querySelectorAll("[data-image]")) {
        picture.hidden = picture.dataset.image !== pictured.value;
      }
    };
    pictured.closest("p").hidden = false;
    pictured.addEventListener("change", show);
    show();
  }

  const coverage = document.getElementById("coverage");
  function tellCoverage(x, y) {
    if (!coverage) return;
    const found = data.trade.coverages.find((each) => each.x === Math.min(x, y) && each.y === Math.max(x, y));
    const percent = (share) => `${(100 * share).toFixed(1)} %`;
    coverage.textContent = found
      ? "Share of the box of all means that is dominated (hypervolume): " +
        (found.static === null ? "" : `fixed weights ${percent(found.static)}, `) +
        `all rows ${percent(found.everything)}.` +
        (found.front.length > 1 ? ` On the front of the fixed weights: ${found.front.join("; ")}.` : "")
      : "";
  }
  const axes = [...document.querySelectorAll("[data-axis]")];
  for (const select of axes) {
    select.addEventListener("change", () => {
      tellCoverage(...axes.map((each) => Number(each.value)));
      draw(document.querySelector("[data-chart=trade]"));
    });
  }
  if (axes.length) tellCoverage(0, 1);
  for (const [id, chart] of [["cost-axis", "cost"], ["layer", "conflict"]]) {
    document.getElementById(id)?.addEventListener("change", () => draw(document.querySelector(`[data-chart=${chart}]`)));
  }

  // A page with forty tasks has over a hundred charts: draw those that come into view.
  const plots = [...document.querySelectorAll(".plot")];
  const drawOnce = (element) => drawn.has(element) || draw(element);
  const observer = new IntersectionObserver(
    (entries) => entries.filter((entry) => entry.isIntersecting).forEach((entry) => drawOnce(entry.target)),
    { rootMargin: "400px" },
  );
  plots.forEach((element) => observer.observe(element));

  const redraw = () => [...drawn.keys()].forEach(draw);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);

  // Paper is light, whatever the screen is.
  addEventListener("beforeprint", () => {
    document.documentElement.dataset.print = "";
    plots.forEach(draw);
  });
  addEventListener("afterprint", () => {
    delete document.documentElement.dataset.print;
    redraw();
  });

  for (const table of document.querySelectorAll("table[data-sortable]")) {
    const body = table.querySelector("tbody.multi");
    for (const button of table.querySelectorAll("th button")) {
      button.addEventListener("click", () => {
        const heading = button.closest("th");
        const best = button.dataset.better === "higher" ? "descending" : "ascending";
        const worst = best === "ascending" ? "descending" : "ascending";
        const order = heading.getAttribute("aria-sort") === best ? worst : best;
        table.querySelectorAll("[aria-sort]").forEach((other) => other.removeAttribute("aria-sort"));
        heading.setAttribute("aria-sort", order);
        const sign = order === "ascending" ? 1 : -1;
        const value = (row) => parseFloat(row.cells[heading.cellIndex].dataset.value);
        // What has no number stays at the end in both directions.
        const compare = (a, b) => (isNaN(a) || isNaN(b) ? isNaN(a) - isNaN(b) : sign * (a - b));
        body.append(...[...body.rows].sort((a, b) => compare(value(a), value(b))));
      });
    }
  }
})();
