// What the page knows. Views read it, and are drawn anew when `changed` says so: once a frame at most.

export const KEEP = 2000; // snapshots
const RECENT = 180; // messages for sparklines, a second each

export const state = {
  model: "", me: { right: "none", models: null }, now: null, skew: 0, past: [], // skew: the service's clock above ours, ms
  history: [], more: null, fields: [], sample: null, samples: 0, jobs: [], quarantine: null, k: null,
  selected: null, // id of a cluster
  at: null, // number of the snapshot that is looked at; null: the newest
  mark: null, // number of the snapshot that it is compared with
};

const details = new Map(); // number -> answer of /snapshots/N, which never changes
const views = [];
let asked = false;

export const view = (draw) => views.push(draw);

export function changed() {
  if (asked) return;
  asked = true;
  requestAnimationFrame(() => {
    asked = false;
    for (const draw of views) draw(state);
  });
}

export function clear(model) {
  Object.assign(state, { model, now: null, past: [], history: [], more: null, fields: [], sample: null, jobs: [], quarantine: null, k: null, selected: null, at: null, mark: null });
  details.clear();
}

export const newest = () => state.history[state.history.length - 1] || null;
export const viewed = () => (state.at === null ? newest() : state.history.find((s) => s.id === state.at) || newest());
export const before = (entry, count) => {
  const end = state.history.indexOf(entry) + 1;
  return state.history.slice(Math.max(0, end - count), end);
};
export const serverNow = () => Date.now() + state.skew;

export function select(id) {
  state.selected = state.selected === id ? null : id;
  changed();
}

export function heard(now) {
  state.now = now;
  state.skew = new Date(now.at).getTime() - Date.now();
  state.past.push(now);
  if (state.past.length > RECENT) state.past.shift();
}

export function published(entry) {
  if (newest() && entry.id <= newest().id) return;
  state.history.push(entry);
  if (state.history.length > KEEP) state.history.shift();
}

// The whole snapshot, once it is there; whoever asks is drawn anew then.
export function detail(entry, load) {
  if (!entry) return null;
  const found = details.get(entry.id);
  if (found === undefined) {
    details.set(entry.id, null);
    load(entry.id).then((answer) => { details.set(entry.id, answer); changed(); }, () => details.delete(entry.id));
    if (details.size > 100) details.delete(details.keys().next().value);
  }
  return found || null;
}
