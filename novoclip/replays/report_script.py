"""The script and the style of a report."""

STYLE = """
:root { color-scheme: light dark; --ink: #1f2328; --soft: #59636e; --page: #ffffff; --line: #d1d9e0; --mark: #dafbe1;
  --box: #f6f8fa; --norm: #8c959f; --level: #1f2328; --limit: #0072b2; --after: #009e73; --spike: #d55e00; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6edf3; --soft: #9198a1; --page: #0d1117; --line: #3d444d; --mark: #12361f; --box: #151b23;
    --norm: #6e7681; --level: #e6edf3; --limit: #56b4e9; --after: #2fc99a; --spike: #ff8b4d; } }
body { margin: 0 auto; max-width: 1200px; padding: 1.5rem; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; overflow-wrap: anywhere; } h2 { font-size: 1.2rem; margin-top: 2.5rem; }
p { max-width: 75ch; } .soft { color: var(--soft); }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: 0.9rem; }
th, td { padding: 0.3rem 0.7rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } tr.best { background: var(--mark); }
td:first-child, code { font-family: ui-monospace, monospace; font-size: 0.9em; }
pre { padding: 0.8rem 1rem; background: var(--box); border: 1px solid var(--line); border-radius: 6px;
  overflow-x: auto; }
select { max-width: 100%; font: inherit; padding: 0.2rem 0.4rem; }
#course { height: 620px; } .pair { display: flex; flex-wrap: wrap; gap: 1rem; }
.pair > div { flex: 1 1 420px; height: 380px; min-width: 0; }
"""

SCRIPT = """
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const choice = document.getElementById("rule");
const colour = name => getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();
const at = (values, rows) => rows.map(row => values[row]);
const line = (name, x, y, ink, more) => ({ name, x, y, type: "scatter", mode: "lines",
  line: Object.assign({ color: colour(ink), width: 1.2 }, more) });
const marks = (name, rows, symbol, ink, heights = data.norms) => ({ name, x: at(data.steps, rows), y: at(heights, rows),
  type: "scatter", mode: "markers", marker: { symbol, size: 9, color: colour(ink), line: { width: 1.5,
  color: colour(ink) } } });
// Plotly offers to send charts to a server; a report sends nothing.
const options = { responsive: true, displaylogo: false, showSendToCloud: false, plotlyServerURL: "",
  modeBarButtonsToRemove: ["select2d", "lasso2d"] };

function axis(title, more) {
  return Object.assign({ title: { text: title }, gridcolor: colour("line"), zerolinecolor: colour("line"),
    linecolor: colour("line") }, more);
}
function layout(more) {
  return Object.assign({ paper_bgcolor: colour("page"), plot_bgcolor: colour("page"),
    font: { color: colour("ink"), family: "system-ui, sans-serif" }, margin: { l: 70, r: 20, t: 30, b: 50 },
    hoverlabel: { bgcolor: colour("box"), bordercolor: colour("line"), font: { color: colour("ink") } } }, more);
}
function logarithmic(title, more) {
  return axis(title, Object.assign({ type: "log", exponentformat: "power", dtick: 1 }, more));
}

function drawCourse() {
  const rule = data.rules[Number(choice.value)];
  const traces = [
    line("norm", data.steps, data.norms, "norm"),
    line("level", data.steps, data.level, "level", { dash: "dash" }),
    line("limit", data.steps, rule.limits, "limit"),
    line("let through", data.steps, rule.after, "after"),
    marks("spike", data.spikes, "triangle-down", "spike"),
    marks("clipped", rule.clipped, "circle-open", "limit"),
    marks("skipped", rule.skipped, "x-thin", "ink"),
    marks("not finite", data.nonfinite, "star", "spike", data.level),
  ];
  const loss = data.losses.length > 0;
  if (loss) traces.push(Object.assign(line("loss", data.steps, data.losses, "ink"), { yaxis: "y2" }));
  Plotly.react("course", traces, layout({ uirevision: "kept", hovermode: "closest",
    legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0 },
    xaxis: axis("step", { anchor: loss ? "y2" : "y" }),
    yaxis: logarithmic("norm", { domain: loss ? [0.36, 1] : [0, 1] }),
    yaxis2: Object.assign(data.lossLog ? axis("loss", { type: "log", nticks: 5 }) : axis("loss"),
      { domain: [0, 0.28], visible: loss }) }), options);
}

function drawDistances() {
  Plotly.react("histogram", [{ x: data.histogram.x, y: data.histogram.y, type: "bar", name: "rows",
    marker: { color: colour("limit") } }], layout({ bargap: 0.05,
    xaxis: axis("log10(norm / level)"), yaxis: axis("rows", { type: "log", nticks: 6 }) }), options);
  Plotly.react("tail", [Object.assign(line("rows", data.tail.x, data.tail.y, "spike"), { type: "scatter",
    mode: "lines+markers", marker: { size: 4 } })], layout({ xaxis: axis("x levels", { type: "log" }),
    yaxis: logarithmic("fraction of rows at or above x levels") }), options);
}

function draw() { drawCourse(); drawDistances(); }
data.rules.forEach((rule, i) => choice.add(new Option(rule.line, String(i))));
choice.value = String(data.chosen);
choice.addEventListener("change", drawCourse);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
draw();
"""
