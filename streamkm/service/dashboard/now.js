// Now: rate, lag, age, inertia and status.

import { $, ago, el, fill, num, spark } from "./draw.js";
import { withGaps, newest, serverNow, state } from "./state.js";

function tile(name, value, picture, note) {
  return el("div", { class: "tile" }, el("div", { class: "name", text: name }), el("div", { class: "value", text: value }), picture, note ? el("div", { class: "note", text: note }) : null);
}

export function drawNow() {
  const { now, past, history } = state;
  const health = $("#health");
  const word = now ? now.status : "…";
  if (health.dataset.word !== word) { health.dataset.word = word; $(".word", health).textContent = word; } // announced by screen readers once
  $(".reason", health).textContent = now ? now.status_reason : "";
  if (!now) { fill($("#now .tiles"), el("p", { class: "note", text: "…" })); return; }
  const away = now.committed_at && (now.status === "stopped" || now.status === "stale"); // the end of the topic may have moved
  const last = newest();
  const inertias = withGaps(history.slice(-60), (s) => s.inertia);
  const known = inertias.filter(Number.isFinite), usual = known.length ? [...known].sort((a, b) => a - b)[known.length >> 1] : NaN;
  const against = last && Number.isFinite(last.inertia) && usual ? `${num(last.inertia / usual, 2)} times the usual ${num(usual)}` : "";
  fill($("#now .tiles"),
    tile("Points per second", num(now.rate), spark(past.map((m) => m.rate ?? NaN), `Points per second: now ${num(now.rate)}`), `${num(now.points)} in all`),
    tile("Lag, records", num(now.lag), spark(past.map((m) => m.lag ?? NaN), `Lag: now ${num(now.lag)} records`), `${away ? `at the last commit, ${ago((serverNow() - new Date(now.committed_at)) / 1000)} ago; ` : ""}${now.bad_records ? `${num(now.bad_records)} bad records so far` : "no bad records so far"}`),
    tile("Age of the newest snapshot", last ? ago((serverNow() - new Date(last.created_at)) / 1000) : "–", null, last ? `number ${last.id}, ${last.ids.length} clusters` : "none yet"),
    tile("Inertia per point", last ? num(last.inertia) : "–", spark(inertias, `Inertia per point of the last ${Math.min(60, history.length)} snapshots`), against),
    tile("Health", now.status, null, now.status_reason));
}
