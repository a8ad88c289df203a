// K: cost and separation for each number of clusters.

import { $, el, fill, lines } from "./draw.js";
import { state } from "./state.js";

let drawn = null;
export function drawK() {
  const k = state.k, place = $("#k .body");
  if (k === drawn && place.childElementCount) return;
  drawn = k;
  if (!k || !k.ks.length) { fill(place, el("p", { class: "note", text: "No criteria for k yet. They are first computed about a minute after the start of a consumer." })); return; }
  const marks = [{ at: k.current, text: `current: ${k.current}` }, ...(k.suggested === null ? [] : [{ at: k.suggested, text: `suggested: ${k.suggested}`, dash: true }])];
  fill(place, el("div", { class: "charts" }, lines({ title: "Mean squared distance over k", xs: k.ks, ys: k.cost, marks }), lines({ title: "Silhouette over k, higher is better", xs: k.ks, ys: k.silhouette, marks })),
    el("p", { text: k.suggested === null ? `No other number than ${k.current} is suggested.` : k.suggested === k.current ? `k = ${k.current} is the one that is suggested, too.` : `k = ${k.suggested} may be better than ${k.current}.` }), el("p", { class: "note", text: k.reason }));
}
