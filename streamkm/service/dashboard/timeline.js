// Timeline: shares over time as stacked areas, events of clusters, and the slider that selects the snapshot of the page.

import { $, ago, clock, el, fill, headers, num, percent, refill, scale, svg } from "./draw.js";
import { colour, hatch, hatches, shape } from "./colours.js";
import { clusterButton } from "./clusters.js";
import { changed, gapsBefore, select, serverNow, state, shownSnapshot } from "./state.js";

const DAY = 86400000, NARROW = 500, HEIGHT = 260, TOP = 26, BOTTOM = 22, DRAWN = 300;
const SIGNS = { birth: "+", death: "×", split: "Y", merge: "⋎", drift: "~", promotion: "★", outliers: "!" };

let drawn = "";

export function initTimeline() {
  $("#travel").addEventListener("submit", (e) => e.preventDefault());
  $("#moment").addEventListener("input", (e) => go(Number(e.target.value)));
  $("#live").addEventListener("click", () => { state.at = null; changed(); });
  $("#mark").addEventListener("click", () => { const entry = shownSnapshot(); state.mark = state.mark === null && entry ? entry.id : null; changed(); });
}

function go(index) {
  const entry = state.history[index];
  state.at = !entry || index === state.history.length - 1 ? null : entry.id;
  changed();
}

export function goTo(id) { go(state.history.findIndex((s) => s.id === id)); }

const sentence = (e) => ({
  birth: `cluster ${e.after.join(", ")} was born`, death: `cluster ${e.before.join(", ")} died`,
  split: `cluster ${e.before.join(", ")} split into ${e.after.join(", ")}`, merge: `clusters ${e.before.join(", ")} became ${e.after.join(", ")}`,
  drift: "the points drifted", promotion: `snapshot ${e.detail.snapshot ?? ""} was promoted`, outliers: `a burst of outliers: ${num(e.detail.count)}`,
}[e.kind] || e.kind);

// A sample of the history that includes all snapshots with events.
function sampled(history) {
  const step = Math.ceil(history.length / DRAWN);
  return history.filter((s, i) => i % step === 0 || s.events.length || i === history.length - 1);
}

const zone = () => Intl.DateTimeFormat(undefined, { timeZoneName: "longOffset" }).formatToParts(new Date()).find((p) => p.type === "timeZoneName").value.replace("GMT", "UTC");

// A gap without snapshots.
const gapMark = (from, to, ms) => svg("g", { class: "pause" }, svg("path", { class: "axis", d: `M${from},${(TOP + HEIGHT - BOTTOM) / 2}H${to}`, "stroke-dasharray": "1 4" }), svg("title", { text: `nothing was published for ${ago(ms / 1000)}` }));

export function drawTimeline() {
  const { history } = state, entry = shownSnapshot(), index = history.indexOf(entry), slider = $("#moment");
  slider.max = Math.max(0, history.length - 1);
  slider.value = index;
  document.body.classList.toggle("past", state.at !== null);
  $("#live").setAttribute("aria-pressed", String(state.at === null));
  $("#mark").setAttribute("aria-pressed", String(state.mark !== null));
  $("#mark").textContent = state.mark === null ? "Compare with this" : `Compared with ${state.mark}`;
  const text = entry ? `${clock(entry.created_at)} · snapshot ${entry.id}${state.at === null ? " · newest" : " · past"}` : "no snapshot yet";
  $("#moment-text").textContent = text;
  slider.setAttribute("aria-valuetext", text);
  if (history.length < 2) { drawn = ""; fill($("#timeline .shares"), el("p", { class: "note", text: "After the second snapshot there is something to see." })); fill($("#timeline .events"), events(history)); return; }
  const WIDTH = Math.max(300, $("#timeline .shares").clientWidth);
  const silent = gapsBefore([...history.slice(-6), { created_at: serverNow() }]).pop() ? Math.round(serverNow() / 60000) : 0; // for how long is told by the minute
  const key = [state.model, silent, history.length, history[history.length - 1].id, state.at, state.mark, state.selected, WIDTH].join();
  if (key === drawn) return; // most seconds bring nothing new here
  drawn = key;
  const shown = sampled(history), times = shown.map((s) => new Date(s.created_at).getTime());
  const x = scale([times[0], times[times.length - 1]], [0, WIDTH]), y = scale([0, 1], [HEIGHT - BOTTOM, TOP]);
  const ids = [...new Set(shown.flatMap((s) => s.ids))].sort((a, b) => a - b);
  const starts = gapsBefore(shown).flatMap((paused, i) => (paused || i === 0 ? [i] : [])), runs = starts.map((from, n) => [from, starts[n + 1] ?? shown.length]);
  const floor = shown.map(() => 0), layers = starts.slice(1).map((i) => gapMark(x(times[i - 1]), x(times[i]), times[i] - times[i - 1]));
  for (const id of ids) {
    const low = [...floor];
    shown.forEach((s, i) => { const at = s.ids.indexOf(id); floor[i] += at < 0 ? 0 : s.shares[at] || 0; });
    const area = runs.map(([from, to]) => {
      const at = (heights) => times.slice(from, to).map((t, i) => `${x(t).toFixed(1)},${y(heights[from + i]).toFixed(1)}`);
      return `M${at(floor).join("L")}L${at(low).reverse().join("L")}Z`;
    }).join("");
    layers.push(svg("path", { d: area, fill: colour(id), stroke: "var(--card)", "stroke-width": 1, opacity: state.selected === null || state.selected === id ? 0.9 : 0.25, onclick: () => select(id) }, svg("title", { text: `cluster ${id}` })), hatch(id) ? svg("path", { d: area, fill: hatch(id), "pointer-events": "none" }) : null);
    const last = shown.length - 1, middle = y((low[last] + floor[last]) / 2);
    if (floor[last] - low[last] > 0.05) layers.push(svg("path", { d: shape(id, 5), transform: `translate(${WIDTH - 40},${middle})`, fill: colour(id), class: "ink" }), svg("text", { x: WIDTH - 30, y: middle + 4, class: "halo", text: id }));
  }
  const signs = shown.flatMap((s, i) => s.events.length ? [svg("g", { onclick: () => goTo(s.id) }, svg("path", { class: "ink", d: `M${x(times[i])},${TOP}V${HEIGHT - BOTTOM}`, "stroke-dasharray": "2 3", opacity: 0.5 }),
    svg("text", { x: Math.min(WIDTH - 8, Math.max(8, x(times[i]))), y: 17, "text-anchor": "middle", text: [...new Set(s.events.map((e) => SIGNS[e.kind] || "?"))].join("") }), svg("title", { text: `${clock(s.created_at)}: ${s.events.map(sentence).join("; ")}` }))] : []);
  const line = (id, dash) => { const s = history.find((one) => one.id === id); return s ? svg("path", { class: "ink", "stroke-width": 2, "stroke-dasharray": dash, d: `M${x(new Date(s.created_at).getTime())},${TOP}V${HEIGHT - BOTTOM}` }) : null; };
  const moment = (t) => (times[times.length - 1] - times[0] > DAY ? new Date(t).toLocaleString(undefined, { month: "short", day: "numeric", hour: "2-digit", minute: "2-digit" }) : new Date(t).toLocaleTimeString());
  const hours = (WIDTH < NARROW ? [0, 0.5, 1] : [0, 0.25, 0.5, 0.75, 1]).map((part) => svg("text", { class: "soft", x: part * WIDTH, y: HEIGHT - 5, "text-anchor": part === 0 ? "start" : part === 1 ? "end" : "middle", text: moment(times[0] + part * (times[times.length - 1] - times[0])) }));
  fill($("#timeline .shares"), svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": `Shares of ${ids.length} clusters over ${history.length} snapshots, the last: ${shown[shown.length - 1].ids.map((id, i) => `cluster ${id} ${percent(shown[shown.length - 1].shares[i])}`).join(", ")}` }, hatches(), layers.filter(Boolean), signs, state.at === null ? null : line(state.at), state.mark === null ? null : line(state.mark, "6 4"), hours),
    el("p", { class: "note", text: `+ birth, × death, Y split, ⋎ merge, ~ drift, ★ promotion, ! outliers. ${starts.length > 1 ? "Nothing was published where the stream is broken. " : ""}${silent ? `Nothing was published since the last snapshot, ${ago((serverNow() - times[times.length - 1]) / 1000)} ago. ` : ""}Times are in ${zone()}.` }));
  refill($("#timeline .events"), events(history));
}

function events(history) {
  const eventful = history.filter((s) => s.events.length).slice(-30).reverse();
  if (!eventful.length) return el("p", { class: "note", text: "Nothing yet." });
  return el("table", {}, el("caption", { text: "The last events; click to go to the snapshot" }), el("tbody", {}, eventful.map((s) => el("tr", {},
    el("td", {}, el("button", { type: "button", "data-key": `e${s.id}`, onclick: () => goTo(s.id), text: clock(s.created_at) })), el("td", { class: "wide", text: s.events.map(sentence).join("; ") })))));
}

export function comparison(d, a, b) {
  const rows = d.shifts.slice(0, 20).map((m) => el("tr", {}, el("td", {}, clusterButton(m.id)), el("td", { text: percent(m.share_before) }), el("td", { text: percent(m.share_after) }), el("td", { text: num(m.distance) }), el("td", { text: num(m.spreads) })));
  const only = [[`Only in ${a}`, d.removed], [`Only in ${b}`, d.added]].filter(([, ids]) => ids.length).map(([what, ids]) => el("p", { text: `${what}: ${ids.join(", ")}` }));
  return [el("h3", { text: `Snapshot ${a} and snapshot ${b}` }), el("p", { text: `${percent(d.changed)} of the points change cluster. Mean squared distance on the same points: ${num(d.cost_a, 5)} in ${a}, ${num(d.cost_b, 5)} in ${b}.` }), ...only,
    el("table", {}, el("caption", { text: "Clusters in both, the largest shift first" }), headers(["Cluster", `Share in ${a}`, `Share in ${b}`, "Moved", "In spreads"]), el("tbody", {}, rows))];
}

let compared = "";
export function drawComparison(get) {
  const entry = shownSnapshot(), place = $("#timeline .comparison"), key = state.mark === null || !entry || entry.id === state.mark ? "" : `${state.model} ${state.mark} ${entry.id}`;
  if (key === compared) return;
  compared = key;
  if (!key) { fill(place); return; }
  const [a, b] = [state.mark, entry.id];
  get(`/diff?a=${a}&b=${b}`).then((d) => { if (compared === key) fill(place, comparison(d, a, b)); }, (error) => { if (compared === key) fill(place, el("p", { class: "note", text: error.message })); });
}
