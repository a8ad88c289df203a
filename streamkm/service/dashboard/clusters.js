// Clusters: a table of them, and what makes the selected one different.

import { $, ago, el, fill, heads, num, percent, refill, spark, svg } from "./draw.js";
import { colour, swatch } from "./colours.js";
import { before, detail, select, state, viewed } from "./state.js";

const TREND = 40, FIELDS = 8, RECORDS = 5;

export function clusterButton(id) {
  return el("button", { type: "button", class: "cluster", "data-key": `c${id}`, "aria-pressed": String(state.selected === id), onclick: () => select(id), title: "Select it everywhere" }, swatch(id), String(id));
}

// How far fields are from the mean of all points, in deviations between clusters: what tells one from the others.
function profiles(entry) {
  const total = entry.shares.reduce((a, b) => a + (b || 0), 0) || 1, d = entry.centroids[0].length;
  const share = entry.shares.map((s) => (s || 0) / total);
  const mean = Array.from({ length: d }, (_, j) => entry.centroids.reduce((sum, c, i) => sum + share[i] * c[j], 0));
  const deviation = mean.map((m, j) => Math.sqrt(entry.centroids.reduce((sum, c, i) => sum + share[i] * (c[j] - m) ** 2, 0)));
  return { mean, z: entry.centroids.map((c) => c.map((v, j) => (deviation[j] > 0 ? (v - mean[j]) / deviation[j] : 0))) };
}

function neighbour(entry, i, factors) {
  let best = null;
  entry.centroids.forEach((c, j) => {
    if (j === i) return;
    const far = Math.sqrt(c.reduce((sum, v, f) => sum + ((v - entry.centroids[i][f]) * (factors ? factors[f] : 1)) ** 2, 0));
    if (!best || far < best.far) best = { far, id: entry.ids[j] };
  });
  return best;
}

function cells(z, limit) {
  const width = 14, most = 3;
  return svg("svg", { width: z.length * width, height: 30, viewBox: `0 0 ${z.length * width} 30`, role: "img", "aria-label": z.map((v, j) => `${limit[j]} ${v >= 0 ? "+" : "−"}${num(Math.abs(v), 2)}`).join(", ") },
    svg("path", { class: "axis", d: `M0,15H${z.length * width}` }),
    z.map((v, j) => { const size = Math.min(Math.abs(v) / most, 1) * 14; return svg("rect", { x: j * width + 2, width: width - 4, y: v >= 0 ? 15 - size : 15, height: Math.max(size, 0.5), fill: "var(--mark)" }); }));
}

let drawn = "";
export function drawClusters(load) {
  const entry = viewed();
  if (!entry || !entry.ids.length) { drawn = ""; fill($("#clusters .scroll"), el("p", { class: "note", text: "No clusters yet." })); return; }
  const whole = detail(entry, load);
  const key = [state.model, entry.id, state.history.length, state.selected, whole !== null, state.selected === null || state.at !== null ? 0 : state.samples].join();
  if (key === drawn) return;
  drawn = key;
  const trend = before(entry, TREND), { mean, z } = profiles(entry);
  // The fields that differ most, or a wide model would fill the page.
  const order = state.fields.map((_, j) => j).sort((a, b) => Math.max(...z.map((r) => Math.abs(r[b]))) - Math.max(...z.map((r) => Math.abs(r[a])))).slice(0, FIELDS).sort((a, b) => a - b);
  const names = order.map((j) => state.fields[j]);
  const rows = entry.ids.map((id, i) => {
    const near = neighbour(entry, i, whole?.factors), c = whole?.clusters.find((one) => one.id === id);
    const first = state.history.find((s) => s.ids.includes(id)), oldest = first && first === state.history[0];
    const age = first ? (new Date(entry.created_at) - new Date(first.created_at)) / 1000 : NaN;
    const shares = trend.map((s) => { const at = s.ids.indexOf(id); return at < 0 ? NaN : s.shares[at] ?? NaN; });
    return el("tr", { class: state.selected === id ? "selected" : null },
      el("td", {}, clusterButton(id)), el("td", { text: `${oldest ? "> " : ""}${ago(age)}`, title: c ? `${num(c.age)} points` : "" }),
      el("td", { text: percent(entry.shares[i]) }), el("td", {}, spark(shares, `Share of cluster ${id} over ${shares.length} snapshots`, { width: 80, height: 24 })),
      el("td", { text: num(entry.spreads[i]) }), el("td", { text: near ? `${near.id} at ${num(near.far)}` : "–" }),
      el("td", {}, cells(order.map((j) => z[i][j]), names)));
  });
  refill($("#clusters .scroll"), el("table", {}, el("caption", { text: `Deviation of ${names.join(", ")}${names.length < state.fields.length ? " (those that differ most)" : ""} from the mean of all points` }),
    heads(["Cluster", "Age", "Share", "Trend", "Spread", "Nearest", "Deviation"]), el("tbody", {}, rows)));
  drawProfile(entry, z, mean);
}

function drawProfile(entry, z, mean) {
  const i = entry.ids.indexOf(state.selected), place = $("#clusters .profile");
  if (i < 0) { fill(place, el("p", { class: "note", text: state.selected === null ? "Select a cluster to see what makes it different." : `Cluster ${state.selected} did not exist at this moment.` })); return; }
  const order = state.fields.map((_, j) => j).sort((a, b) => Math.abs(z[i][b]) - Math.abs(z[i][a])).slice(0, 20);
  const bars = order.map((j) => el("tr", {}, el("th", { scope: "row", text: state.fields[j] }), el("td", { text: num(entry.centroids[i][j], 4) }), el("td", { text: num(mean[j], 4) }),
    el("td", { class: "text" }, el("span", { class: "bar", style: { width: `${Math.min(8, Math.abs(z[i][j]) * 2)}rem`, background: colour(entry.ids[i]), outline: "1px solid currentColor" } }), ` ${z[i][j] >= 0 ? "+" : "−"}${num(Math.abs(z[i][j]), 2)}`)));
  const sample = state.at === null ? state.sample : null;
  const mine = sample ? sample.ids.map((id, n) => (id === state.selected ? n : -1)).filter((n) => n >= 0).slice(-RECORDS).reverse() : [];
  const shown = order.slice(0, FIELDS).sort((a, b) => a - b);
  fill(place, el("h3", { text: `Cluster ${state.selected}` }),
    el("table", {}, el("caption", { text: "Centroid, mean of all points, and the deviation in standard deviations between clusters" }), heads(["Field", "Centroid", "Mean", "Deviation"]), el("tbody", {}, bars)),
    mine.length ? el("table", {}, el("caption", { text: "Some of its last records" }), heads([...shown.map((j) => state.fields[j]), "Distance", "Outlier score"]),
      el("tbody", {}, mine.map((n) => el("tr", {}, shown.map((j) => el("td", { text: num(sample.points[n][j], 6) })), el("td", { text: num(sample.distances[n]) }), el("td", { text: num(sample.scores[n]) }))))) : null);
}
