// Feed: positions of the partitions, and bad records.

import { $, clock, el, fill, headers, num } from "./draw.js";
import { state } from "./state.js";

// Why the quarantine is empty: bad records that stopped a consumer may not have been committed.
function empty(now) {
  if (now.bad_records) return `Empty now: ${num(now.bad_records)} bad records were counted so far, and are no longer kept.`;
  if (now.status === "stopped" || now.status === "stale") return "Empty: no bad record was committed. The consumer does not run; if it stopped because of bad records, its log tells which.";
  return now.points ? "Empty: no bad record was met so far." : "Empty: no record was learned yet.";
}

let drawn = "";
export function drawFeed() {
  const { now, quarantine } = state;
  if (!now) fill($("#feed .partitions"), el("p", { class: "note", text: "…" }));
  else if (!now.partitions.length) fill($("#feed .partitions"), el("p", { class: "note", text: "Nothing was read yet." }));
  else {
    fill($("#feed .partitions"), el("table", {}, el("caption", { text: "Partitions" }), headers(["Topic", "Partition", "Position", "End", "Lag", "Records/s"]),
      el("tbody", {}, now.partitions.map((p) => el("tr", {}, el("td", { text: p.topic }), el("td", { text: p.partition }), el("td", { text: num(p.offset, 12) }), el("td", { text: num(p.end, 12) }), el("td", { text: num(p.lag) }), el("td", { text: num(p.rate) }))))));
  }
  const key = JSON.stringify([state.model, quarantine, now && now.status, now && now.bad_records]);
  if (key === drawn) return;
  drawn = key;
  const place = $("#feed .quarantine");
  if (!quarantine || !now) { fill(place, el("p", { class: "note", text: "…" })); return; }
  if (!quarantine.total) { fill(place, el("p", { class: "note", text: empty(now) })); return; }
  const most = Math.max(...Object.values(quarantine.reasons));
  fill(place, el("table", {}, el("caption", { text: `${num(quarantine.total)} records, by reason` }), el("tbody", {}, Object.entries(quarantine.reasons).map(([reason, n]) => el("tr", {}, el("th", { scope: "row", text: reason }), el("td", { text: num(n) }), el("td", { class: "text" }, el("span", { class: "bar", style: { width: `${(12 * n) / most}rem` } })))))),
    el("table", {}, el("caption", { text: "The last ones" }), headers(["<Record", "Time", "<Reason", "<Field", "<What was wrong", "<Value"]),
      el("tbody", {}, quarantine.records.map((r) => el("tr", {}, el("td", { text: `${r.topic}-${r.partition}@${r.offset}` }), el("td", { text: r.timestamp >= 0 ? clock(new Date(r.timestamp).toISOString()) : "–" }), el("td", { class: "text", text: r.reason }), el("td", { class: "text", text: r.field }), el("td", { class: "wide", text: r.message }), el("td", { class: "wide", text: r.value ?? "null" }))))));
}
