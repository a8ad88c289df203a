// What the page knows. Views read it, and are drawn anew when `changed` says so: once a frame at most.

export const KEEP = 2000; // snapshots
const RECENT = 180; // messages for sparklines, a second each
const SILENCE = 5000; // ms between two messages after which what was between them is not known
const GAP = 5, LEAST_GAP = 20000; // a pause is so many times the usual time between snapshots, and so many ms

export const state = {
  model: "", me: { right: "none", models: null }, now: null, skew: 0, past: [], // skew: the service's clock above ours, ms
  history: [], more: null, fields: [], sample: null, samples: 0, jobs: [], quarantine: null, k: null,
  selected: null, // id of a cluster
  at: null, // number of the snapshot that is looked at; null: the newest
  mark: null, // number of the snapshot that it is compared with
};

const AGAIN = 5000; // ms until a snapshot that could not be had is asked for again
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
  if (state.now && new Date(now.at) - new Date(state.now.at) > SILENCE) state.past.push({});
  state.now = now;
  state.skew = new Date(now.at).getTime() - Date.now();
  state.past.push(now);
  state.past = state.past.slice(-RECENT);
}

export function published(entry) {
  if (newest() && entry.id <= newest().id) return;
  state.history.push(entry);
  if (state.history.length > KEEP) state.history.shift();
}

// The whole snapshot: null until it is there, and whoever asks is drawn anew then; false when it could not be had.
export function detail(entry, load) {
  if (!entry) return null;
  const found = details.get(entry.id);
  if (found === undefined) {
    details.set(entry.id, null);
    load(entry.id).then((answer) => { details.set(entry.id, answer); changed(); }, () => { details.set(entry.id, false); changed(); setTimeout(() => details.delete(entry.id), AGAIN); });
    if (details.size > 100) details.delete(details.keys().next().value);
  }
  return found ?? null;
}

const middle = (values) => [...values].sort((a, b) => a - b)[values.length >> 1] ?? 0;

// Whether nothing is known between each entry and the one before it: it took far longer than near it is usual.
export function pauses(entries) {
  const took = entries.map((s, i) => (i ? new Date(s.created_at) - new Date(entries[i - 1].created_at) : 0));
  return took.map((t, i) => i > 0 && t > Math.max(LEAST_GAP, GAP * Math.max(middle(took.slice(Math.max(1, i - 5), i)), middle(took.slice(i + 1, i + 6)))));
}

// Values of entries for a line, with a hole in it where there was a pause.
export function broken(entries, value) {
  const paused = pauses(entries);
  return entries.flatMap((s, i) => (paused[i] ? [NaN, value(s) ?? NaN] : [value(s) ?? NaN]));
}
