// Recompute: start an exact recomputation, follow it, compare its result with the live model, promote it.

import { $, ago, el, fill, headers, num, refill } from "./draw.js";
import { changed, newest, serverNow, state } from "./state.js";
import { comparison } from "./timeline.js";

export function initRecompute({ ask, control, promote }) {
  $("#job").addEventListener("submit", (e) => {
    e.preventDefault();
    const form = new FormData(e.target), body = { from: form.get("from"), to: form.get("to"), init: form.get("init") };
    if (form.get("k")) body.k = Number(form.get("k"));
    control("/jobs", { method: "POST", body }).then((job) => { if (job) addJob(job); });
  });
  actions = { ask, control, promote };
}

let actions = null, compared = ""; // the model of the comparison that is shown

export function addJob(job) {
  const at = state.jobs.findIndex((j) => j.id === job.id);
  if (at < 0) state.jobs.unshift(job); else state.jobs[at] = job;
  changed();
}

function progress({ state: word, progress: p, error, snapshot }) {
  if (word === "failed") return error;
  if (word === "done") return `snapshot ${snapshot}`;
  if (word !== "running") return "";
  if (p.stage === "reading" && p.total) return [el("progress", { max: p.total, value: p.done, "aria-label": "Records read" }), ` ${num(p.done)} of ${num(p.total)} read`];
  if (p.stage === "fitting") return `iteration ${p.iteration}: cost ${num(p.inertia, 5)}, ${num(p.moved)} points moved`;
  return "starting";
}

function compare(job) {
  const live = newest(), place = $("#recompute .comparison");
  if (!live) return;
  fill(place, el("p", { class: "note", text: "Comparing …" }));
  const model = state.model, show = (...what) => { if (state.model === model) fill(place, ...what); };
  actions.ask(`/diff?a=${live.id}&b=${job.snapshot}`).then((d) => show(comparison(d, live.id, job.snapshot)), (error) => show(el("p", { class: "note", text: error.message })));
}

export function drawRecompute() {
  const may = state.me.right === "write";
  const start = $("#job button");
  if (compared !== state.model) { compared = state.model; fill($("#recompute .comparison")); }
  start.disabled = !may;
  start.title = may ? "" : "Sign in with a token with the right to write";
  if (!state.jobs.length) { fill($("#recompute .jobs"), el("p", { class: "note", text: may ? "No recomputation yet." : "Sign in with a token with the right to write to start one." })); return; }
  const rows = state.jobs.slice(0, 20).map((job) => el("tr", {},
    el("td", { text: `${job.options.from} to ${job.options.to}` }), el("td", { text: job.options.k ?? "current" }), el("td", { class: "text", text: job.state }), el("td", { class: "wide" }, progress(job)),
    el("td", { text: `${ago((serverNow() - new Date(job.created_at)) / 1000)} ago` }),
    el("td", { class: "text" }, job.state === "done" ? [el("button", { type: "button", "data-key": `cmp${job.id}`, onclick: () => compare(job), text: "Compare" }), " ", el("button", { type: "button", "data-key": `pro${job.id}`, disabled: !may, onclick: () => actions.promote(job.snapshot), text: "Promote" })] : null,
      ["queued", "running"].includes(job.state) ? el("button", { type: "button", "data-key": `can${job.id}`, disabled: !may, onclick: () => actions.control(`/jobs/${job.id}`, { method: "DELETE" }), text: "Cancel" }) : null)));
  refill($("#recompute .jobs"), el("table", {}, el("caption", { text: "Recomputations, newest first" }), headers(["<Range", "k", "<State", "<Progress", "Requested", "<Actions"]), el("tbody", {}, rows)));
}
