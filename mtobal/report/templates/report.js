"use strict";
(() => {
  const data = JSON.parse(document.getElementById("chart-data").textContent);
  const hidden = new Set();
  const splits = new Set();
  const drawn = new Map(); // plot element -> its traces

  // Plotly reads a few tags and entities in texts; a name is shown as it is.
  const plain = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  function axis(title) {
    return {
      title: { text: title, standoff: 8, font: { size: 12 } },
      gridcolor: colour("--line"),
      linecolor: colour("--line"),
      zerolinecolor: colour("--line"),
      zeroline: false,
      automargin: true,
    };
  }

  function layout(x, y) {
    return {
      showlegend: false,
      margin: { l: 48, r: 12, t: 8, b: 40 },
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: colour("--quiet") },
      hoverlabel: { align: "left", namelength: -1 },
      // A finger on a chart scrolls the page.
      dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom",
      xaxis: x,
      yaxis: y,
    };
  }

  function curve(line, y, extra) {
    const row = data.rows[line.row];
    return {
      x: line.epochs,
      y,
      name: plain(row.name),
      mode: line.epochs.length > 1 ? "lines" : "markers",
      line: { color: row.colour, width: 2 },
      marker: { color: row.colour, size: 7 },
      meta: { row: line.row },
      ...extra,
    };
  }

  const charts = {
    losses(index) {
      const traces = [];
      for (const line of data.losses[index].lines) {
        for (const split of ["train", "validation"]) {
          if (!line[split]) continue;
          const trace = curve(line, line[split], {
            hovertemplate: `<b>%{fullData.name}</b><br>${split} %{y:.4g}<br>epoch %{x}<extra></extra>`,
          });
          trace.meta.split = split;
          if (split === "train") {
            trace.line = { ...trace.line, width: 1.5, dash: "dot" };
            trace.opacity = 0.75;
          }
          traces.push(trace);
        }
      }
      return [traces, layout(epochAxis(traces), axis("loss"))];
    },
    weights(index) {
      const traces = data.weights[index].lines.map((line) =>
        curve(line, line.share, {
          customdata: line.applied,
          hovertemplate:
            "<b>%{fullData.name}</b><br>share %{y:.3f}<br>applied weight %{customdata:.4g}<br>epoch %{x}<extra></extra>",
        }),
      );
      return [traces, layout(epochAxis(traces), { ...axis("share of the weights"), rangemode: "tozero" })];
    },
    cost() {
      // Many names would cover each other: then colour and hovering tell the rows apart.
      const labelled = data.cost.length <= 8;
      const traces = data.cost.map((point) => {
        const row = data.rows[point.row];
        return {
          x: [point.ratio],
          y: [point.delta],
          error_y: { type: "data", array: [point.spread || 0], visible: point.spread !== null, thickness: 1.5 },
          name: plain(row.name),
          mode: labelled ? "markers+text" : "markers",
          text: [plain(row.name.length > 18 ? row.name.slice(0, 17) + "…" : row.name)],
          textposition: "middle right",
          cliponaxis: false,
          marker: { color: row.colour, size: 10 },
          meta: { row: point.row },
          hovertemplate: "<b>%{fullData.name}</b><br>delta_m %{y:+.2f} %<br>%{x:.2f} times ew<extra></extra>",
        };
      });
      const y = { ...axis("delta_m % (lower is better)"), zeroline: true };
      const look = layout({ ...axis("time of a step relative to ew"), rangemode: "tozero" }, y);
      if (labelled) look.margin.r = 110;
      return [traces, look];
    },
  };

  function epochAxis(traces) {
    const last = Math.max(1, ...traces.flatMap((trace) => trace.x));
    return { ...axis("epoch"), ...(last <= 8 ? { dtick: 1 } : { nticks: 7 }) };
  }

  const visible = (trace) => !hidden.has(trace.meta.row) && (!trace.meta.split || splits.has(trace.meta.split));

  function draw(element) {
    if (drawn.has(element)) return;
    const [traces, look] = charts[element.dataset.chart](Number(element.dataset.index));
    drawn.set(element, traces);
    for (const trace of traces) trace.visible = visible(trace);
    Plotly.newPlot(element, traces, look, {
      responsive: true,
      displayModeBar: false,
    });
  }

  function showVisible() {
    for (const [element, traces] of drawn) Plotly.restyle(element, { visible: traces.map(visible) });
    for (const button of legend.querySelectorAll("[data-row]")) {
      button.setAttribute("aria-pressed", String(!hidden.has(Number(button.dataset.row))));
    }
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

  // A page with forty tasks has eighty charts: draw those that come into view.
  const observer = new IntersectionObserver(
    (entries) => entries.filter((entry) => entry.isIntersecting).forEach((entry) => draw(entry.target)),
    { rootMargin: "600px" },
  );
  document.querySelectorAll(".plot").forEach((element) => observer.observe(element));
  addEventListener("beforeprint", () => document.querySelectorAll(".plot").forEach(draw));

  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    for (const element of drawn.keys()) {
      const look = { "font.color": colour("--quiet") };
      for (const key of ["gridcolor", "linecolor", "zerolinecolor"]) {
        look[`xaxis.${key}`] = look[`yaxis.${key}`] = colour("--line");
      }
      Plotly.relayout(element, look);
    }
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
