"use strict";
(() => {
  const data = JSON.parse(document.getElementById("chart-data").textContent);
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  // Plotly reads a few tags and entities in texts; a name is shown as it is.
  const plain = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  const short = (text) => plain(text.length > 22 ? text.slice(0, 21) + "…" : text);
  const places = data.tasks.map((_, index) => index);

  const axis = (title) => ({
    title: { text: title, standoff: 8, font: { size: 12 } },
    gridcolor: colour("--line"),
    zerolinecolor: colour("--quiet"),
    automargin: true,
  });
  // By place and not by name, for two long names may be cut to the same.
  const taskAxis = (title) => ({
    ...axis(title),
    tickvals: places,
    ticktext: data.tasks.map(short),
    showgrid: false,
    zeroline: false,
  });
  const layout = (x, y) => ({
    showlegend: false,
    margin: { l: 48, r: 12, t: 8, b: 40 },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: colour("--quiet") },
    hoverlabel: { align: "left", namelength: -1 },
    dragmode: false,
    xaxis: x,
    yaxis: { ...y, autorange: "reversed" },
  });

  const charts = {
    matrix() {
      // A task does 1 for itself; the scale is that of what lies outside the diagonal, alike on both sides of zero.
      const outside = data.matrix.flatMap((row, i) => row.filter((_, j) => i !== j).map(Math.abs));
      const end = Math.max(...outside, 1e-3);
      const trace = {
        type: "heatmap",
        z: data.matrix.map((row, i) => row.map((value, j) => (i === j ? null : value))),
        zmin: -end,
        zmax: end,
        colorscale: [
          [0, colour("--worse")],
          [0.5, colour("--raised")],
          [1, colour("--better")],
        ],
        showscale: false,
        xgap: 2,
        ygap: 2,
        hoverongaps: false,
        customdata: data.cells.map((row, i) =>
          row.map((cell, j) => `<b>${plain(data.tasks[i])}</b> to ${plain(data.tasks[j])}<br>${cell}`),
        ),
        hovertemplate: "%{customdata}<extra></extra>",
      };
      const look = layout(taskAxis("to"), taskAxis("from"));
      if (data.tasks.length <= 16) {
        look.annotations = data.matrix.flatMap((row, i) =>
          row.map((value, j) => ({
            x: j,
            y: i,
            text: value.toFixed(2),
            showarrow: false,
            font: {
              size: 13,
              // The strongest colours are dark on a light page and light on a dark one; so is the page, the other way.
              color: i !== j && Math.abs(value) > 0.6 * end ? colour("--page") : colour("--ink"),
            },
          })),
        );
      }
      return [[trace], look];
    },

    difficulty() {
      const trace = {
        type: "bar",
        orientation: "h",
        x: data.difficulty,
        y: places,
        marker: { color: colour("--accent") },
        customdata: data.tasks.map(plain),
        hovertemplate: "<b>%{customdata}</b><br>%{x:.3f}<extra></extra>",
      };
      if (data.spread) trace.error_x = { type: "data", array: data.spread, color: colour("--ink"), thickness: 1.2 };
      return [[trace], layout(axis("difficulty"), taskAxis(""))];
    },
  };

  function draw() {
    for (const plot of document.querySelectorAll(".plot")) {
      Plotly.react(plot, ...charts[plot.dataset.chart](), { responsive: true, displayModeBar: false });
    }
  }
  draw();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  // Paper is light, whatever the screen is.
  addEventListener("beforeprint", () => {
    document.documentElement.dataset.print = "";
    draw();
  });
  addEventListener("afterprint", () => {
    delete document.documentElement.dataset.print;
    draw();
  });
})();
