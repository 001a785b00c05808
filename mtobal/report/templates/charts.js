"use strict";

// What each chart of the page shows: (index) -> [traces, layout]. A trace belongs to the row in its meta, if any.
function chartDrawings(data, colour) {
  const FEW = 8; // rows up to which charts have room for names

  // Plotly reads a few tags and entities in texts; a name is shown as it is.
  const plain = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  const short = (text, length) => plain(text.length > length ? text.slice(0, length - 1) + "…" : text);

  function axis(title) {
    return {
      title: { text: plain(title), standoff: 8, font: { size: 12 } },
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

  function epochAxis(traces) {
    const last = Math.max(1, ...traces.map((trace) => trace.x[trace.x.length - 1]));
    return { ...axis("epoch"), ...(last <= FEW ? { dtick: 1 } : { nticks: 7 }) };
  }

  const hover = (text) => `<b>%{fullData.name}</b><br>${text}<extra></extra>`;
  const bars = (value, range) => ({
    type: "data",
    symmetric: false,
    array: [range && range.high !== null ? range.high - value : 0],
    arrayminus: [range && range.low !== null ? value - range.low : 0],
    thickness: 1.2,
    width: 0,
  });

  function point(index, x, y, labelled, extra) {
    const row = data.rows[index];
    return {
      x: [x],
      y: [y],
      name: plain(row.name),
      // Many names would cover each other: then colour and hovering tell the rows apart.
      mode: labelled ? "markers+text" : "markers",
      text: [short(row.name, 18)],
      textposition: "middle right",
      cliponaxis: false,
      marker: {
        color: row.colour,
        size: 10,
        symbol: row.baseline ? "x" : row.static ? "square" : "circle",
        // A ring around the static weights that validation chooses.
        line: { width: index === data.best_static ? 2 : 0, color: colour("--ink") },
      },
      meta: { row: index },
      ...extra,
      ...(row.folded ? cloud(index) : {}),
    };
  }

  // The sweep: small, without bars and names, and there though its rows are folded.
  function cloud(index) {
    const best = index === data.best_static;
    return {
      mode: "markers",
      opacity: best ? 1 : 0.6,
      marker: {
        color: data.rows[index].colour,
        size: best ? 10 : 6,
        symbol: "square",
        line: { width: best ? 2 : 0, color: colour("--ink") },
      },
      ...(best ? {} : { error_x: { visible: false }, error_y: { visible: false } }),
      meta: { row: index, cloud: true },
    };
  }

  // The line through the points that no other betters in both; a sign is 1 where higher is better, -1 where lower is.
  function front(points, signs) {
    const beats = (a, b) =>
      signs[0] * a.x >= signs[0] * b.x && signs[1] * a.y >= signs[1] * b.y && (a.x !== b.x || a.y !== b.y);
    const best = points.filter((each) => !points.some((other) => beats(other, each))).sort((a, b) => a.x - b.x);
    return {
      x: best.map((each) => each.x),
      y: best.map((each) => each.y),
      mode: "lines",
      line: { color: colour("--quiet"), width: 1.5, dash: "dash" },
      hoverinfo: "skip",
      meta: {},
    };
  }

  const named = (rows) => rows.filter((each) => !data.rows[each.row].folded).length <= FEW;

  return {
    losses(index) {
      const traces = [];
      for (const line of data.losses[index].lines) {
        for (const split of ["train", "validation"]) {
          if (!line[split]) continue;
          const trace = curve(line, line[split], { hovertemplate: hover(`${split} %{y:.4g}<br>epoch %{x}`) });
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

    metrics(index) {
      const { name, lines } = data.metrics[index];
      const traces = lines.map((line) =>
        curve(line, line.validation, { hovertemplate: hover("%{y:.4g}<br>epoch %{x}") }),
      );
      return [traces, layout(epochAxis(traces), axis(short(name, 40)))];
    },

    weights(index) {
      const traces = data.weights[index].lines.map((line) =>
        curve(line, line.share, {
          customdata: line.applied,
          hovertemplate: hover("share %{y:.3f}<br>applied weight %{customdata:.4g}<br>epoch %{x}"),
        }),
      );
      return [traces, layout(epochAxis(traces), { ...axis("share of the weights"), rangemode: "tozero" })];
    },

    conflict() {
      const { lines } = data.conflict[Number(document.getElementById("layer").value)];
      const traces = lines.map((line) =>
        curve(line, line.conflict, { hovertemplate: hover("%{y:.1%} of the pairs<br>epoch %{x}") }),
      );
      return [
        traces,
        layout(epochAxis(traces), { ...axis("conflicting pairs"), rangemode: "tozero", tickformat: ".0%" }),
      ];
    },

    layers() {
      const rows = data.rows
        .map((_, index) => index)
        .filter((row) => !data.rows[row].folded && data.conflict.some((each) => each.means[row] !== null));
      const layers = data.conflict.map((each) => each.layer);
      const ticks = (names) => ({ tickvals: names.map((_, index) => index), ticktext: names, showgrid: false });
      const told = rows.map((row) => layers.map((layer) => `<b>${plain(data.rows[row].name)}</b><br>${plain(layer)}`));
      const trace = {
        type: "heatmap",
        z: rows.map((row) => data.conflict.map((each) => each.means[row])),
        zmin: 0,
        zmax: 1,
        customdata: told,
        hovertemplate: "%{customdata}: %{z:.1%}<extra></extra>",
        hoverongaps: false,
        colorscale: [
          [0, colour("--raised")],
          [1, "#b34f00"],
        ],
        colorbar: { thickness: 10, tickformat: ".0%", outlinewidth: 0 },
        xgap: 1,
        ygap: 1,
        meta: {},
      };
      return [
        [trace],
        layout(
          { ...axis(""), ...ticks(layers.map((layer) => short(layer, 22))), tickangle: -50 },
          { ...axis(""), ...ticks(rows.map((row) => short(data.rows[row].name, 22))), autorange: "reversed" },
        ),
      ];
    },

    cost() {
      const [kind, title, unit] =
        document.getElementById("cost-axis")?.value === "memory"
          ? ["memory", "peak memory, MiB", "MiB"]
          : ["time", "time of a step, ms", "ms"];
      const known = data.cost.filter((each) => each[kind] && each[kind].value !== null && each.delta !== null);
      const labelled = named(known);
      const traces = known.map((each) =>
        point(each.row, each[kind].value, each.delta, labelled, {
          error_x: bars(each[kind].value, each[kind]),
          error_y: bars(each.delta, each.range),
          hovertemplate: hover(`delta_m %{y:+.2f} %<br>%{x:.4g} ${unit}`),
        }),
      );
      const best = known.find((each) => each.row === data.best_static);
      const look = layout(
        { ...axis(title), rangemode: "tozero" },
        { ...axis("delta_m % (lower is better)"), zeroline: true },
      );
      if (best) {
        const dotted = { color: colour("--quiet"), width: 1.5, dash: "dot" };
        look.shapes = [{ type: "line", xref: "paper", x0: 0, x1: 1, y0: best.delta, y1: best.delta, line: dotted }];
      }
      traces.unshift(front(known.map((each) => ({ x: each[kind].value, y: each.delta })), [-1, -1]));
      if (labelled) look.margin.r = 110;
      return [traces, look];
    },

    trade() {
      const [x, y] = ["x", "y"].map((name) => Number(document.querySelector(`[data-axis=${name}]`).value));
      const labelled = named(data.trade.points);
      const known = data.trade.points.filter((each) => each.values[x] !== null && each.values[y] !== null);
      const traces = known.map((each) =>
        point(each.row, each.values[x], each.values[y], labelled, {
          error_x: bars(each.values[x], each.ranges[x]),
          error_y: bars(each.values[y], each.ranges[y]),
          hovertemplate: hover("%{x:.4g}, %{y:.4g}"),
        }),
      );
      const fixed = known.filter((each) => data.rows[each.row].static);
      if (fixed.length > 1) {
        const signs = [x, y].map((metric) => (data.trade.metrics[metric].higher ? 1 : -1));
        traces.unshift(front(fixed.map((each) => ({ x: each.values[x], y: each.values[y] })), signs));
      }
      const title = (metric) =>
        `${short(data.trade.metrics[metric].name, 40)} (${data.trade.metrics[metric].higher ? "higher" : "lower"} is better)`;
      const look = layout(axis(title(x)), axis(title(y)));
      if (labelled) look.margin.r = 110;
      return [traces, look];
    },

    ranks() {
      const { points, groups } = data.ranks;
      const place = new Map(points.map((each, index) => [each.row, index]));
      const traces = points.map((each, index) =>
        point(each.row, each.rank, index, false, { hovertemplate: hover("average rank %{x:.2f}") }),
      );
      const last = Math.max(...points.map((each) => each.rank));
      const step = Math.max(last / 30, 0.1);
      groups.forEach((group, index) => {
        const places = group.map((row) => place.get(row));
        const x = last + step * (2 + index);
        traces.push({
          x: [x, x],
          y: [Math.min(...places) - 0.2, Math.max(...places) + 0.2],
          mode: "lines",
          line: { color: colour("--ink"), width: 3 },
          hovertemplate: `${group.length} rows that are not told apart<extra></extra>`,
          meta: {},
        });
      });
      const names = points.map((each) => short(data.rows[each.row].name, 26));
      return [
        traces,
        layout(
          { ...axis("average rank (1 is best)"), range: [0.5, last + step * (3 + groups.length)] },
          {
            ...axis(""),
            tickvals: points.map((_, index) => index),
            ticktext: names,
            range: [points.length - 0.4, -0.6],
          },
        ),
      ];
    },

    pairs() {
      const { rows, tests } = data.pairs;
      const place = new Map(rows.map((row, index) => [row, index]));
      const square = (value) => rows.map(() => rows.map(() => value));
      const [sign, text, told] = [square(null), square(""), square("")];
      const verdicts = { better: 1, worse: -1 };
      for (const [first, second, difference, verdict, p] of tests) {
        for (const [a, b, turn] of [
          [place.get(first), place.get(second), 1],
          [place.get(second), place.get(first), -1],
        ]) {
          const shown = turn * (verdicts[verdict] ?? 0);
          const word = { 1: "better", [-1]: "worse" }[shown] ?? verdict;
          const size = difference === null ? "" : `${turn * difference > 0 ? "+" : ""}${(turn * difference).toFixed(2)}`;
          sign[a][b] = shown;
          if (shown && rows.length <= 16) text[a][b] = size;
          told[a][b] = `<b>${plain(data.rows[rows[a]].name)}</b> against ${plain(data.rows[rows[b]].name)}<br>${size} (${word}${p ? ", " + p : ""})`;
        }
      }
      const names = rows.map((row) => short(data.rows[row].name, 22));
      const ticks = { tickvals: rows.map((_, index) => index), ticktext: names, showgrid: false };
      const trace = {
        type: "heatmap",
        z: sign,
        zmin: -1,
        zmax: 1,
        text,
        texttemplate: "%{text}",
        textfont: { color: "#ffffff" },
        customdata: told,
        hovertemplate: "%{customdata}<extra></extra>",
        colorscale: [
          [0, "#b34f00"],
          [0.499, "#b34f00"],
          [0.499, colour("--raised")],
          [0.501, colour("--raised")],
          [0.501, "#0a6aa8"],
          [1, "#0a6aa8"],
        ],
        showscale: false,
        xgap: 1,
        ygap: 1,
        meta: {},
      };
      return [
        [trace],
        layout({ ...axis(""), ...ticks, tickangle: -60, showticklabels: rows.length <= 16 }, { ...axis(""), ...ticks, autorange: "reversed" }),
      ];
    },
  };
}
