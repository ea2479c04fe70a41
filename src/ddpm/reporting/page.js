"use strict";
const page = JSON.parse(document.getElementById("data").textContent);
const root = document.documentElement;
const all = (selector, within = document) => [...within.querySelectorAll(selector)];
const key = "ddpm report " + location.pathname;
const system = matchMedia("(prefers-color-scheme: dark)");
const state = Object.assign({filter: "", axis: "steps", scale: "log", theme: null, sort: null, more: false, hidden: []}, recalled());

let matching = [];

function recalled() {
  try { return JSON.parse(sessionStorage.getItem(key)); } catch { return null; }
}

function changed(values) {
  Object.assign(state, values);
  try { sessionStorage.setItem(key, JSON.stringify(state)); } catch { /* a browser that stores nothing */ }
  show();
}

function show() {
  const dark = state.theme ? state.theme === "dark" : system.matches;
  root.dataset.theme = dark ? "dark" : "light";
  const words = state.filter.toLowerCase().split(/\s+/);
  matching = page.cells.map(text => words.every(word => text.includes(word)));
  all("[data-cell]").forEach(each => { each.hidden = !matching[each.dataset.cell]; });
  all(".key [data-toggle]").forEach(each => {
    each.hidden = !matching[each.dataset.toggle];
    each.setAttribute("aria-pressed", !state.hidden.includes(+each.dataset.toggle));
  });
  all(".none").forEach(each => { each.hidden = matching.includes(true); });
  const n = matching.filter(Boolean).length;
  document.getElementById("count").textContent = state.filter ? `${n} of ${matching.length} configurations` : "";
  all("[data-set]").forEach(each => each.setAttribute("aria-pressed", state[each.dataset.set] === each.dataset.value));
  document.getElementById("results").classList.toggle("all", state.more);
  sorted();
  crisp();
  all("[data-plot]").forEach(each => draw(each));
}

function visible(index) {
  return matching[index] && !state.hidden.includes(index);
}

function sorted() {
  const body = document.querySelector("#results tbody");
  const {column, down} = state.sort ?? {column: null, down: false};
  all("#results th").forEach((each, i) => {
    if (i === column) each.setAttribute("aria-sort", down ? "descending" : "ascending");
    else each.removeAttribute("aria-sort");
  });
  const value = row => column === null ? row.dataset.cell : row.cells[column]?.dataset.value;
  const compare = (a, b) => {
    const [x, y] = [value(a), value(b)];
    if (x === undefined || y === undefined) return (x === undefined) - (y === undefined);
    const order = Number.isNaN(x - y) ? x.localeCompare(y, "en", {numeric: true}) : x - y;
    return down ? -order : order;
  };
  body.append(...all("tr", body).sort(compare));
}

function crisp() {  // enlarged without smoothing; made smaller, that would drop rows
  all(".grids img").forEach(each => { each.style.imageRendering = each.clientWidth > each.naturalWidth ? "pixelated" : "auto"; });
}

function draw(element, size = {}) {
  if (element.closest("details:not([open])")) return;
  const {variants, scale, spread} = page.plots[element.dataset.plot];
  const {data, layout} = variants[state.axis] ?? variants.steps;
  const colour = name => getComputedStyle(root).getPropertyValue(name).trim();
  const axis = {gridcolor: colour("--line"), linecolor: colour("--line"), zeroline: false, automargin: true};
  const type = scale === "chosen" ? state.scale : scale;
  const format = ",.4~r";
  Plotly.react(element, data.filter(trace => visible(trace.meta)), {
    ...layout, ...size,
    margin: {l: 52, r: 12, t: 14, b: 44},
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: {family: "system-ui, sans-serif", size: 12, color: colour("--quiet")},
    hoverlabel: {bgcolor: colour("--raised"), bordercolor: colour("--line"), font: {color: colour("--text")}, align: "left", namelength: -1},
    showlegend: false, hovermode: "closest",
    xaxis: {...axis, ...layout.xaxis, tickformat: format, ...(scale === "log" ? {type: "log", dtick: 1} : {})},
    yaxis: {...axis, tickformat: format, ...(type === "log" ? {type, dtick: spread > 300 ? 1 : spread > 3.5 ? "D2" : undefined} : {nticks: 7})},
  }, {responsive: true, displaylogo: false, modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"]});
}

document.getElementById("filter").value = state.filter;
document.getElementById("filter").addEventListener("input", event => changed({filter: event.target.value.trim()}));
document.getElementById("more").checked = state.more;
document.getElementById("more").addEventListener("change", event => changed({more: event.target.checked}));
document.getElementById("theme").addEventListener("click", () => changed({theme: root.dataset.theme === "dark" ? "light" : "dark"}));
all("[data-set]").forEach(each => each.addEventListener("click", () => changed({[each.dataset.set]: each.dataset.value})));
all(".key [data-toggle]").forEach(each => each.addEventListener("click", () => {
  const index = +each.dataset.toggle;
  const hidden = state.hidden.includes(index);
  changed({hidden: hidden ? state.hidden.filter(other => other !== index) : [...state.hidden, index]});
}));
all("#results th").forEach((each, column) => each.querySelector(".sort").addEventListener("click", () => {
  changed({sort: {column, down: state.sort?.column === column && !state.sort.down}});
}));
all(".copy").forEach(each => each.addEventListener("click", async () => {
  const text = each.parentElement.querySelector("code");
  try {
    await navigator.clipboard.writeText(text.textContent);
    each.textContent = "copied";
  } catch {
    getSelection().selectAllChildren(text);
    each.textContent = "selected";
  }
  setTimeout(() => { each.textContent = "copy"; }, 1500);
}));
all("details").forEach(each => each.addEventListener("toggle", show));
system.addEventListener("change", show);
addEventListener("resize", crisp);
addEventListener("load", crisp);
addEventListener("beforeprint", () => {  // for 700 pixels, the width of a sheet of A4 or Letter between its margins
  const table = document.getElementById("results");
  root.dataset.theme = "light";
  root.classList.add("printing");
  table.style.zoom = Math.min(1, 696 / table.scrollWidth);
  all("[data-plot]").forEach(each => draw(each, {width: 318, height: 260}));
});
addEventListener("afterprint", () => {
  root.classList.remove("printing");
  document.getElementById("results").style.zoom = "";
  show();
});
if (page.refresh) setTimeout(() => location.reload(), page.refresh * 1000);
show();
