// Map: some of the last points and the centroids with their way, in two dimensions.

import { $, el, extent, fill, hideTip, num, path, percent, scale, showTip, svg } from "./draw.js";
import { colour, shape } from "./colours.js";
import { before, select, state, shownSnapshot } from "./state.js";

const WAY = 20; // snapshots of a centroid's path
const NEAR = 14; // pixels
let axes = ["pca", "pca"], shown = null, range = null, rangeKey = "", placed = [];

const plane = () => $("#map .plane");

export function initMap(changed) {
  for (const [i, id] of ["x-axis", "y-axis"].entries()) {
    $(`#${id}`).addEventListener("change", (e) => {
      axes[i] = e.target.value;
      // Components come as a pair, and so do fields.
      if (axes[i] === "pca") axes = ["pca", "pca"];
      else if (axes[1 - i] === "pca") axes[1 - i] = state.fields[(state.fields.indexOf(axes[i]) + 1) % state.fields.length];
      shown = null;
      changed();
    });
  }
  plane().addEventListener("pointermove", (e) => {
    const found = nearest(e);
    if (found) showTip(found.text, e.clientX, e.clientY); else hideTip();
  });
  plane().addEventListener("pointerleave", hideTip);
  plane().addEventListener("click", (e) => { const found = nearest(e); if (found) select(found.id); });
  // The arrow keys go from cluster to cluster.
  plane().addEventListener("keydown", (e) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[e.key];
    const ids = shownSnapshot()?.ids;
    if (!step || !ids?.length) return;
    e.preventDefault();
    const at = ids.indexOf(state.selected);
    select(ids[(at + step + ids.length) % ids.length]);
  });
  new ResizeObserver(changed).observe(plane());
}

function nearest(e) {
  const box = plane().getBoundingClientRect(), x = e.clientX - box.left, y = e.clientY - box.top;
  let found = null, best = NEAR ** 2;
  for (const p of placed) {
    const far = (p.x - x) ** 2 + (p.y - y) ** 2 - (p.big ? 60 : 0);
    if (far < best) { best = far; found = p; }
  }
  return found;
}

function options() {
  const names = ["pca", ...state.fields];
  if (shown === names.join("\n")) return;
  if (!axes.every((a) => names.includes(a))) axes = ["pca", "pca"];
  shown = names.join("\n");
  for (const [i, id] of ["x-axis", "y-axis"].entries()) {
    fill($(`#${id}`), names.map((n) => el("option", { value: n, text: n === "pca" ? `component ${i + 1}` : n, selected: n === axes[i] })));
  }
}

function projector() {
  const p = state.sample?.projection;
  if (axes[0] === "pca") {
    if (!p) return null;
    const along = (axis) => (v) => axis.reduce((sum, a, j) => sum + a * (v[j] - p.mean[j]), 0);
    return p.axes.map(along);
  }
  return axes.map((name) => { const j = state.fields.indexOf(name); return (v) => v[j]; });
}

// Two points in a hundred may lie outside, or one far spike would make a dot of all others.
function bounds(values, must) {
  const sorted = values.filter(Number.isFinite).sort((a, b) => a - b), n = sorted.length;
  const inner = n > 50 ? [sorted[Math.floor(n * 0.01)], sorted[Math.ceil(n * 0.99) - 1]] : sorted;
  const [low, high] = extent([...inner, ...must]), pad = (high - low) * 0.06;
  return [low - pad, high + pad];
}

// It grows at once and shrinks slowly, so that the picture stands still.
function steady(key, wanted) {
  if (key !== rangeKey || !range) { rangeKey = key; range = wanted; }
  range = range.map(([low, high], i) => [Math.min(wanted[i][0], low + (wanted[i][0] - low) * 0.05), Math.max(wanted[i][1], high + (wanted[i][1] - high) * 0.05)]);
  return range;
}

// Nothing to draw: what stood there was another model's, or is no longer so.
function empty(canvas, overlay, entry) {
  canvas.width = canvas.width; // clears it
  fill(overlay);
  placed = [];
  hideTip();
  plane().setAttribute("aria-label", "Map of recent points and centroids: empty");
  $("#map .note").textContent = entry ? "No recent points are kept to find components of. Choose fields to see the centroids." : state.model ? "No clusters yet." : "No model is chosen.";
}

export function drawMap() {
  options();
  const entry = shownSnapshot(), project = projector(), box = plane(), width = box.clientWidth, height = box.clientHeight;
  const canvas = $("canvas", box), overlay = $("svg", box), ratio = devicePixelRatio || 1;
  if (!width) return;
  if (!entry || !project) { empty(canvas, overlay, entry); return; }
  const past = state.at !== null, sample = past ? null : state.sample;
  const points = sample ? sample.points.map((p) => [project[0](p), project[1](p)]) : [];
  const ways = entry.ids.map((id) => before(entry, WAY).map((s) => [s.ids.indexOf(id), s]).filter(([i]) => i >= 0).map(([i, s]) => [project[0](s.centroids[i]), project[1](s.centroids[i])]));
  const ends = ways.map((w) => w[w.length - 1]);
  const [rx, ry] = steady(`${state.model} ${axes} ${past}`, [0, 1].map((a) => bounds(points.map((p) => p[a]), ends.map((p) => p[a]))));
  const x = scale(rx, [8, width - 8]), y = scale(ry, [height - 8, 8]);
  canvas.width = width * ratio;
  canvas.height = height * ratio;
  const pen = canvas.getContext("2d");
  pen.scale(ratio, ratio);
  placed = [];
  points.forEach(([px, py], i) => {
    const id = sample.ids[i], other = state.selected !== null && state.selected !== id;
    pen.globalAlpha = other ? 0.15 : 0.75;
    pen.fillStyle = colour(id);
    pen.save();
    pen.translate(x(px), y(py));
    pen.fill(new Path2D(shape(id, 2.4)));
    pen.restore();
    placed.push({ x: x(px), y: y(py), id, text: pointText(sample, i) });
  });
  overlay.setAttribute("viewBox", `0 0 ${width} ${height}`);
  fill(overlay, entry.ids.map((id, i) => {
    const [cx, cy] = [x(ends[i][0]), y(ends[i][1])];
    placed.push({ x: cx, y: cy, id, big: true, text: `cluster ${id}\nshare ${percent(entry.shares[i])}\n${state.fields.map((f, j) => `${f}: ${num(entry.centroids[i][j], 4)}`).slice(0, 12).join("\n")}` });
    const other = state.selected !== null && state.selected !== id;
    return svg("g", { opacity: other ? 0.35 : 1 },
      svg("path", { d: path(ways[i].map(([a, b]) => [x(a), y(b)])), fill: "none", stroke: colour(id), "stroke-width": 2 }),
      svg("path", { d: shape(id, state.selected === id ? 11 : 8), transform: `translate(${cx},${cy})`, fill: colour(id), class: "ink", "stroke-width": state.selected === id ? 3 : 1.5 }),
      svg("text", { x: cx + 12, y: cy + 4, class: "halo", text: id }));
  }));
  box.setAttribute("aria-label", `Map of ${points.length} recent points and ${entry.ids.length} centroids${state.selected === null ? "" : `, cluster ${state.selected} is selected`}. Arrow keys select clusters.`);
  const projectionText = axes[0] === "pca" && state.sample?.projection.explained[0] ? `Principal components: ${state.sample.projection.explained.map((e) => `${num(100 * e)} %`).join(" and ")} of the variance. ` : "";
  $("#map .note").textContent = projectionText + (past ? "Points of the past are not kept: these are the centroids of that moment and the way that they came." : "");
}

function pointText(sample, i) {
  const values = state.fields.slice(0, 12).map((f, j) => `${f}: ${num(sample.points[i][j], 5)}`);
  return `cluster ${sample.ids[i]}, distance ${num(sample.distances[i])}, outlier score ${num(sample.scores[i])}\n${values.join("\n")}`;
}
