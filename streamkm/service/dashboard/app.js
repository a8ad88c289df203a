// The page: chooses a model, listens to it, and hands what it hears to the views.

import { ask, listen, setToken, token } from "./api.js";
import { drawClusters } from "./clusters.js";
import { loadColours } from "./colours.js";
import { $, el, fill } from "./draw.js";
import { drawFeed } from "./feed.js";
import { drawK } from "./k.js";
import { drawMap, initMap } from "./map.js";
import { drawNow } from "./now.js";
import { drawRecompute, heardJob, initRecompute } from "./recompute.js";
import { changed, clear, heard, newest, published, state, view, viewed } from "./state.js";
import { drawComparison, drawTimeline, initTimeline } from "./timeline.js";

const PAGES = 4, PER_PAGE = 500; // of history, the newest first
const SLOW = 5000; // ms between looks at what changes slowly
let leave = () => {};

const history_ = window.history, address = (model) => `#model=${encodeURIComponent(model)}`;

const base = (rest = "") => `/v1/models/${encodeURIComponent(state.model)}${rest}`;
const get = (rest) => ask(base(rest));

function trouble(text) {
  const box = $("#trouble");
  box.hidden = !text;
  if (box.textContent !== text) box.textContent = text;
}

async function act(rest, options) {
  try {
    const answer = await ask(base(rest), options);
    trouble("");
    return answer;
  } catch (error) {
    trouble(error.message);
    return null;
  }
}

function sure(what) {
  const dialog = $("#sure");
  $(".what", dialog).textContent = what;
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((done) => dialog.addEventListener("close", () => done(dialog.returnValue === "ok"), { once: true }));
}

async function promote(snapshot) {
  if (await sure(`Put snapshot ${snapshot} in charge of ${state.model}? What came since is learned again on top of it.`)) await act("/promote", { method: "POST", body: { snapshot } });
}

async function history() {
  const model = state.model;
  for (let page = 0, before = ""; page < PAGES; page += 1) {
    const { fields, snapshots, next } = await get(`/history?limit=${PER_PAGE}${before}`);
    if (state.model !== model) return;
    state.fields = fields;
    const known = new Set(state.history.map((s) => s.id));
    state.history = [...snapshots.filter((s) => !known.has(s.id)).reverse(), ...state.history].sort((a, b) => a.id - b.id);
    changed();
    if (next === null) return;
    before = `&before=${next}`;
  }
}

async function slowly() {
  const model = state.model;
  // Of a model without a snapshot there is no k to ask for.
  const [quarantine, k] = await Promise.all([get("/quarantine?limit=20"), newest() ? get("/k").catch(() => null) : null]);
  if (state.model !== model) return;
  Object.assign(state, { quarantine, k: k && JSON.stringify(k) === JSON.stringify(state.k) ? state.k : k });
  changed();
}

async function start(model) {
  leave();
  clear(model);
  history_.replaceState(null, "", address(model));
  trouble("");
  changed();
  try {
    const { jobs } = await get("/jobs").catch(() => ({ jobs: [] }));
    if (state.model !== model) return;
    state.jobs = jobs;
    await history().catch((error) => { if (error.status !== 409) throw error; });
    await slowly();
  } catch (error) {
    if (state.model === model) refused(error);
  }
  if (state.model !== model) return; // another one was chosen meanwhile
  const stop = listen(base("/stream"), {
    onOpen: () => { trouble(""); history().catch(() => {}); },
    onLost: (error) => refused(error),
    onEvent: (kind, data) => {
      if (state.model !== model) return;
      if (kind === "now") heard(data);
      else if (kind === "snapshot") { published(data); if (!state.fields.length) history().catch(() => {}); }
      else if (kind === "sample") { state.sample = data; state.samples += 1; }
      else if (kind === "job") { heardJob(data); return; }
      changed();
    },
  });
  const timer = setInterval(() => slowly().catch(() => {}), SLOW);
  leave = () => { stop(); clearInterval(timer); };
}

function refused(error) {
  trouble(error.message);
  if (error.status === 401) askForToken();
}

function askForToken() {
  if (!$("#token-dialog").open) $("#token-dialog").showModal();
}

async function signIn() {
  state.me = await ask("/v1/me").catch((error) => { refused(error); return { right: "none", models: null }; });
  $("#sign-in").textContent = token() ? (state.me.name ? `Signed in: ${state.me.name}` : "Sign in again") : "Sign in";
  changed();
}

// Offers the models that there are; the one that is shown stays chosen. An equal list, which may be open, is not touched.
function offer(found) {
  const list = $("#model"), names = found.map((m) => m.name), chosen = list.value;
  if (names.join("\n") === [...list.options].filter((o) => o.value).map((o) => o.value).join("\n")) return;
  const none = [...list.options].filter((o) => !o.value);
  fill(list, [...none, ...names.map((name) => el("option", { value: name, text: name }))]);
  list.value = names.includes(chosen) ? chosen : "";
}

async function models() {
  const { models: found } = await ask("/v1/models");
  fill($("#model"), []);
  offer(found);
  if (!found.length) { trouble("There is no model yet: start streamkm live. This page looks again by itself."); setTimeout(open, 2000); return; }
  const asked = wanted();
  if (asked !== null && !found.some((m) => m.name === asked)) {
    // Another model in its place would be taken for it.
    leave();
    clear("");
    changed();
    $("#model").prepend(el("option", { value: "", text: "choose one", selected: true, disabled: true }));
    trouble(`There is no model "${asked}", or this token may not see it: choose one`);
    return;
  }
  const chosen = asked ?? found[0].name;
  $("#model").value = chosen;
  await start(chosen);
}

// The model that the address names; null if it names none.
function wanted() {
  const found = location.hash.match(/model=([^&]*)/);
  if (!found) return null;
  try { return decodeURIComponent(found[1]); } catch { return found[1]; }
}

// A link to a section takes the place of the model in the address; a typed address names another one.
function moved() {
  const asked = wanted();
  if (asked === null && state.model) history_.replaceState(null, "", address(state.model));
  else if (asked !== null && asked !== state.model) open();
}

// Models come and go while the page is open.
async function look() {
  if (!document.hidden && $("#model").options.length) offer((await ask("/v1/models")).models);
}

async function open() {
  trouble("");
  await signIn();
  if (state.me.right === "none") askForToken();
  else await models().catch(refused);
}

function theme(name) {
  document.documentElement.dataset.theme = name;
  changed();
}

function drawHead() {
  const may = state.me.right === "write", pause = $("#pause"), entry = viewed();
  pause.hidden = !may || !state.now;
  pause.textContent = state.now?.paused ? "Resume" : "Pause";
  $("#promote-moment").hidden = !may || state.at === null;
  $("#promote-moment").onclick = () => promote(entry.id);
}

addEventListener("hashchange", moved);
$("#model").addEventListener("change", (e) => start(e.target.value));
$("#theme").addEventListener("click", () => theme(document.documentElement.dataset.theme === "dark" ? "light" : "dark"));
$("#sign-in").addEventListener("click", askForToken);
$("#pause").addEventListener("click", () => act(state.now?.paused ? "/resume" : "/pause", { method: "POST" }));
$("#token-dialog").addEventListener("close", (e) => {
  const said = e.target.returnValue;
  if (said === "ok") setToken($("#token").value.trim());
  if (said === "out") setToken("");
  $("#token").value = "";
  if (said !== "cancel" && said !== "") open();
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
initRecompute({ ask: get, act, promote });
setInterval(changed, 1000); // ages grow
setInterval(() => look().catch(() => {}), SLOW);
loadColours().then(open, (error) => trouble(error.message));
