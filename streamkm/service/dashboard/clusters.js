// Clusters: a table, and the differences of the selected one.

import { $, ago, el, fill, headers, num, percent, refill, spark, svg } from "./draw.js";
import { colour, swatch } from "./colours.js";
import { before, withGaps, detail, select, state, shownSnapshot } from "./state.js";

const TREND = 40, FIELDS = 8, RECORDS = 5, PROFILE = 20, FEW = 3, MUCH = 0.2; // fields of a profile: at most, at least, and how much the others have to differ
const UNKNOWN = "What makes clusters different is not known: an older streamkm published this snapshot";

export function clusterButton(id) {
  return el("button", { type: "button", class: "cluster", "data-key": `c${id}`, "aria-pressed": String(state.selected === id), onclick: () => select(id), title: "Select it everywhere" }, swatch(id), String(id));
}

const WITHIN = "standard deviations within clusters";

// How far each centroid is from the mean of all points, field by field, as the service measures it; NaN: not known.
function profiles(entry, whole) {
  const total = entry.shares.reduce((a, b) => a + (b || 0), 0) || 1, d = entry.centroids[0].length;
  const share = entry.shares.map((s) => (s || 0) / total);
  const mean = Array.from({ length: d }, (_, j) => entry.centroids.reduce((sum, c, i) => sum + share[i] * c[j], 0));
  const differences = new Map((whole?.clusters || []).map((c) => [c.id, c.differences]));
  return { mean, z: entry.ids.map((id) => differences.get(id)?.map((v) => v ?? NaN) || Array(d).fill(NaN)) };
}

const size = (v) => (Number.isFinite(v) ? Math.abs(v) : -1);
const signed = (v) => (Number.isFinite(v) ? `${Math.abs(v) >= 1000 ? "more than " : ""}${v >= 0 ? "+" : "−"}${num(Math.abs(v), 2)}` : "not known");

function neighbour(entry, i, factors) {
  let best = null;
  if (!factors) return best; // distances are not known before
  entry.centroids.forEach((c, j) => {
    if (j === i) return;
    const far = Math.sqrt(c.reduce((sum, v, f) => sum + ((v - entry.centroids[i][f]) * factors[f]) ** 2, 0));
    if (!best || far < best.far) best = { far, id: entry.ids[j] };
  });
  return best;
}

// A bar for each field, up or down, by the logarithm: one far cluster would hide how the others differ.
function cells(z, names, most) {
  const width = 14;
  return svg("svg", { width: z.length * width, height: 30, viewBox: `0 0 ${z.length * width} 30`, role: "img", "aria-label": z.map((v, j) => `${names[j]} ${signed(v)}`).join(", ") },
    svg("path", { class: "axis", d: `M0,15H${z.length * width}` }),
    z.map((v, j) => { const high = Number.isFinite(v) ? (14 * Math.log1p(Math.abs(v))) / Math.log1p(most) : 0; return svg("rect", { x: j * width + 2, width: width - 4, y: v >= 0 ? 15 - high : 15, height: Math.max(high, 0.5), fill: "var(--mark)" }, svg("title", { text: `${names[j]} ${signed(v)}` })); }));
}

// One bar from the middle, to the right where it is more than the mean of all points and to the left where it is less.
function bar(v, most, fill) {
  const width = 160, middle = width / 2, long = Number.isFinite(v) ? ((middle - 4) * Math.abs(v)) / most : 0;
  return svg("svg", { class: "sided", width, height: 14, viewBox: `0 0 ${width} 14`, "aria-hidden": "true" },
    svg("rect", { x: v < 0 ? middle - long : middle, width: long, y: 2, height: 10, fill, stroke: "currentColor", "stroke-width": 1 }),
    svg("path", { class: "ink", d: `M${middle},0V14` }));
}

let drawn = "";
export function drawClusters(load) {
  const entry = shownSnapshot();
  if (!entry || !entry.ids.length) { drawn = ""; fill($("#clusters .scroll"), el("p", { class: "note", text: state.model ? "No clusters yet." : "No model is chosen." })); fill($("#clusters .profile")); return; }
  const whole = detail(entry, load);
  if (whole === null && drawn.startsWith(`${state.model},`)) return; // it comes at once: what stands there stays till then
  const key = [state.model, entry.id, state.history.length, state.selected, Boolean(whole), state.selected === null || state.at !== null ? 0 : state.samples].join();
  if (key === drawn) return;
  drawn = key;
  const trend = before(entry, TREND), { mean, z } = profiles(entry, whole);
  const largest = mean.map((_, j) => Math.max(...z.map((r) => size(r[j])))), most = Math.max(1, ...largest), known = most > 1 || largest.some((v) => v >= 0);
  // The fields that differ most, or a wide model would fill the page.
  const order = state.fields.map((_, j) => j).sort((a, b) => largest[b] - largest[a]).slice(0, FIELDS).sort((a, b) => a - b);
  const names = order.map((j) => state.fields[j]);
  const rows = entry.ids.map((id, i) => {
    const near = neighbour(entry, i, whole?.factors), c = whole?.clusters.find((one) => one.id === id);
    const first = state.history.find((s) => s.ids.includes(id)), oldest = first && first === state.history[0];
    const age = first ? (new Date(entry.created_at) - new Date(first.created_at)) / 1000 : NaN;
    const shares = withGaps(trend, (s) => s.shares[s.ids.indexOf(id)]);
    return el("tr", { class: state.selected === id ? "selected" : null },
      el("td", {}, clusterButton(id)), el("td", { text: oldest ? (age > 0 ? `> ${ago(age)}` : "–") : ago(age), title: c ? `${num(c.age)} points` : "" }),
      el("td", { text: percent(entry.shares[i]) }), el("td", {}, spark(shares, `Share of cluster ${id} over ${trend.length} snapshots`, { width: 80, height: 24 })),
      el("td", { text: num(entry.spreads[i]) }), el("td", { text: near ? `${near.id} at ${num(near.far)}` : "–" }),
      el("td", {}, known ? cells(order.map((j) => z[i][j]), names, most) : whole === null ? "…" : "not known"));
  });
  refill($("#clusters .scroll"), el("table", {}, el("caption", { text: known || !whole ? `Difference of ${names.join(", ")}${names.length < state.fields.length ? " (those that differ most)" : ""} from the mean of all points, in ${WITHIN}, on a logarithmic scale` : UNKNOWN }),
    headers(["Cluster", "Age", "Share", "Trend", "Spread", "Nearest", "Difference"]), el("tbody", {}, rows)));
  drawProfile(entry, z, mean, known, whole);
}

function drawProfile(entry, z, mean, known, whole) {
  const i = entry.ids.indexOf(state.selected), place = $("#clusters .profile");
  if (i < 0) { fill(place, el("p", { class: "note", text: state.selected === null ? "Select a cluster to see what makes it different." : `Cluster ${state.selected} did not exist at this moment.` })); return; }
  const order = state.fields.map((_, j) => j).sort((a, b) => size(z[i][b]) - size(z[i][a])).filter((j, n) => n < PROFILE && (n < FEW || !known || size(z[i][j]) >= MUCH)), most = Math.max(1, ...order.map((j) => size(z[i][j])));
  const bars = order.map((j) => el("tr", {}, el("th", { scope: "row", text: state.fields[j] }), el("td", { text: num(entry.centroids[i][j], 4) }), el("td", { text: num(mean[j], 4) }),
    el("td", { class: "text" }, known ? el("span", { class: "measure" }, bar(z[i][j], most, colour(entry.ids[i])), signed(z[i][j])) : whole === null ? "…" : "not known")));
  const left = state.fields.length - order.length, least = Math.max(0, ...state.fields.map((_, j) => (order.includes(j) ? 0 : size(z[i][j]))));
  const sample = state.at === null ? state.sample : null;
  const mine = sample ? sample.ids.map((id, n) => (id === state.selected ? n : -1)).filter((n) => n >= 0).slice(-RECORDS).reverse() : [];
  const shown = order.slice(0, FIELDS).sort((a, b) => a - b);
  fill(place, el("h3", { text: `Cluster ${state.selected}` }),
    el("table", {}, el("caption", { text: `Centroid, mean of all points, and the difference in ${WITHIN}${left ? `; ${left} more ${left === 1 ? "field" : "fields"} ${known ? (least < MUCH ? `by less than ${MUCH}` : "by less") : ""}` : ""}` }), headers(["Field", "Centroid", "Mean", "<Difference"]), el("tbody", {}, bars)),
    mine.length ? el("table", {}, el("caption", { text: "Some of its last records" }), headers([...shown.map((j) => state.fields[j]), "Distance", "Outlier score"]),
      el("tbody", {}, mine.map((n) => el("tr", {}, shown.map((j) => el("td", { text: num(sample.points[n][j], 6) })), el("td", { text: num(sample.distances[n]) }), el("td", { text: num(sample.scores[n]) }))))) : null);
}
