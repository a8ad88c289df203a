// The dashboard: selects a model, opens its stream, and passes messages to the views.

import { request, openStream, setToken, token } from "./api.js";
import { drawClusters } from "./clusters.js";
import { loadColours } from "./colours.js";
import { $, el, fill } from "./draw.js";
import { drawFeed } from "./feed.js";
import { drawK } from "./k.js";
import { drawMap, initMap } from "./map.js";
import { drawNow } from "./now.js";
import { drawRecompute, addJob, initRecompute } from "./recompute.js";
import { changed, clear, addStatus, newest, addSnapshot, state, view, shownSnapshot } from "./state.js";
import { drawComparison, drawTimeline, initTimeline } from "./timeline.js";

const MAX_PAGES = 4, PAGE_SIZE = 500; // of history, newest first
const SLOW_REFRESH = 5000; // ms between refreshes of quarantine, k and the list of models
let stopCurrent = () => {};

const history_ = window.history, address = (model) => `#model=${encodeURIComponent(model)}`;

const base = (rest = "") => `/v1/models/${encodeURIComponent(state.model)}${rest}`;
const get = (rest) => request(base(rest));

function showError(text) {
  const box = $("#trouble");
  box.hidden = !text;
  if (box.textContent !== text) box.textContent = text;
}

async function control(rest, options) {
  try {
    const answer = await request(base(rest), options);
    showError("");
    return answer;
  } catch (error) {
    showError(error.message);
    return null;
  }
}

function confirmed(question) {
  const dialog = $("#sure");
  $(".what", dialog).textContent = question;
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((done) => dialog.addEventListener("close", () => done(dialog.returnValue === "ok"), { once: true }));
}

async function promote(snapshot) {
  if (await confirmed(`Put snapshot ${snapshot} in charge of ${state.model}? The records since are learned again.`)) await control("/promote", { method: "POST", body: { snapshot } });
}

async function history() {
  const model = state.model;
  for (let page = 0, before = ""; page < MAX_PAGES; page += 1) {
    const { fields, snapshots, next } = await get(`/history?limit=${PAGE_SIZE}${before}`);
    if (state.model !== model) return;
    state.fields = fields;
    const known = new Set(state.history.map((s) => s.id));
    state.history = [...snapshots.filter((s) => !known.has(s.id)).reverse(), ...state.history].sort((a, b) => a.id - b.id);
    changed();
    if (next === null) return;
    before = `&before=${next}`;
  }
}

async function refreshSlowData() {
  const model = state.model;
  // A model without a snapshot has no k.
  const [quarantine, k] = await Promise.all([get("/quarantine?limit=20"), newest() ? get("/k").catch(() => null) : null]);
  if (state.model !== model) return;
  Object.assign(state, { quarantine, k: k && JSON.stringify(k) === JSON.stringify(state.k) ? state.k : k });
  changed();
}

async function start(model) {
  stopCurrent();
  clear(model);
  history_.replaceState(null, "", address(model));
  showError("");
  changed();
  try {
    const { jobs } = await get("/jobs").catch(() => ({ jobs: [] }));
    if (state.model !== model) return;
    state.jobs = jobs;
    await history().catch((error) => { if (error.status !== 409) throw error; });
    await refreshSlowData();
  } catch (error) {
    if (state.model === model) requestFailed(error);
  }
  if (state.model !== model) return; // another model was selected meanwhile
  const stop = openStream(base("/stream"), {
    onOpen: () => { showError(""); history().catch(() => {}); },
    onLost: (error) => requestFailed(error),
    onEvent: (kind, data) => {
      if (state.model !== model) return;
      if (kind === "status") addStatus(data);
      else if (kind === "snapshot") { addSnapshot(data); if (!state.fields.length) history().catch(() => {}); }
      else if (kind === "sample") { state.sample = data; state.samples += 1; }
      else if (kind === "job") { addJob(data); return; }
      changed();
    },
  });
  const timer = setInterval(() => refreshSlowData().catch(() => {}), SLOW_REFRESH);
  stopCurrent = () => { stop(); clearInterval(timer); };
}

function requestFailed(error) {
  showError(error.message);
  if (error.status === 401) openTokenDialog();
}

function openTokenDialog() {
  if (!$("#token-dialog").open) $("#token-dialog").showModal();
}

async function signIn() {
  state.me = await request("/v1/me").catch((error) => { requestFailed(error); return { right: "none", models: null }; });
  $("#sign-in").textContent = token() ? (state.me.name ? `Signed in: ${state.me.name}` : "Sign in again") : "Sign in";
  changed();
}

// Fills the list of models and keeps the selection. An unchanged list is not redrawn, because it may be open.
function fillModelList(found) {
  const list = $("#model"), names = found.map((m) => m.name), selected = list.value;
  if (names.join("\n") === [...list.options].filter((o) => o.value).map((o) => o.value).join("\n")) return;
  const placeholders = [...list.options].filter((o) => !o.value);
  fill(list, [...placeholders, ...names.map((name) => el("option", { value: name, text: name }))]);
  list.value = names.includes(selected) ? selected : "";
}

async function models() {
  const { models: found } = await request("/v1/models");
  fill($("#model"), []);
  fillModelList(found);
  if (!found.length) { showError("There is no model yet: start streamkm live. This page retries automatically."); setTimeout(open, 2000); return; }
  const named = modelInUrl();
  if (named !== null && !found.some((m) => m.name === named)) {
    // Showing another model instead would be misleading.
    stopCurrent();
    clear("");
    changed();
    $("#model").prepend(el("option", { value: "", text: "choose one", selected: true, disabled: true }));
    showError(`There is no model "${named}", or this token may not read it: choose one`);
    return;
  }
  const chosen = named ?? found[0].name;
  $("#model").value = chosen;
  await start(chosen);
}

// The model in the URL; null if there is none.
function modelInUrl() {
  const found = location.hash.match(/model=([^&]*)/);
  if (!found) return null;
  try { return decodeURIComponent(found[1]); } catch { return found[1]; }
}

// A link to a section replaces the model in the URL; a typed URL names another model.
function hashChanged() {
  const named = modelInUrl();
  if (named === null && state.model) history_.replaceState(null, "", address(state.model));
  else if (named !== null && named !== state.model) open();
}

// Models are created and deleted while the page is open.
async function refreshModelList() {
  if (!document.hidden && $("#model").options.length) fillModelList((await request("/v1/models")).models);
}

async function open() {
  showError("");
  await signIn();
  if (state.me.right === "none") openTokenDialog();
  else await models().catch(requestFailed);
}

function theme(name) {
  document.documentElement.dataset.theme = name;
  changed();
}

function drawHead() {
  const may = state.me.right === "write", pause = $("#pause"), entry = shownSnapshot();
  pause.hidden = !may || !state.now;
  pause.textContent = state.now?.paused ? "Resume" : "Pause";
  $("#promote-moment").hidden = !may || state.at === null;
  $("#promote-moment").onclick = () => promote(entry.id);
}

addEventListener("hashchange", hashChanged);
$("#model").addEventListener("change", (e) => start(e.target.value));
$("#theme").addEventListener("click", () => theme(document.documentElement.dataset.theme === "dark" ? "light" : "dark"));
$("#sign-in").addEventListener("click", openTokenDialog);
$("#pause").addEventListener("click", () => control(state.now?.paused ? "/resume" : "/pause", { method: "POST" }));
$("#token-dialog").addEventListener("close", (e) => {
  const choice = e.target.returnValue;
  if (choice === "ok") setToken($("#token").value.trim());
  if (choice === "out") setToken("");
  $("#token").value = "";
  if (choice !== "cancel" && choice !== "") open();
});
const dark = matchMedia("(prefers-color-scheme: dark)");
theme(dark.matches ? "dark" : "light");
dark.addEventListener("change", () => theme(dark.matches ? "dark" : "light"));
view(drawHead);
view(drawNow);
view(drawMap);
view(() => drawClusters((id) => get(`/snapshots/${id}`)));
view(drawTimeline);
view(() => drawComparison(get));
view(drawK);
view(drawRecompute);
view(drawFeed);
initMap(changed);
initTimeline();
initRecompute({ ask: get, control, promote });
setInterval(changed, 1000); // ages change
setInterval(() => refreshModelList().catch(() => {}), SLOW_REFRESH);
loadColours().then(open, (error) => showError(error.message));
