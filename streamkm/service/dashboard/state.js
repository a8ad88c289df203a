// State of the page. Views read it, and are redrawn after `changed`, at most once per frame.

export const MAX_SNAPSHOTS = 2000;
const MAX_STATUSES = 180; // messages in sparklines, one per second
const MAX_MESSAGE_GAP = 5000; // ms between two messages from which sparklines have a gap
const GAP_FACTOR = 5, MIN_GAP = 20000; // a gap is this many times the usual interval of snapshots, and at least this many ms

export const state = {
  model: "", me: { right: "none", models: null }, now: null, skew: 0, past: [], // skew: clock of the service minus that of the browser, ms
  history: [], more: null, fields: [], sample: null, samples: 0, jobs: [], quarantine: null, k: null,
  selected: null, // id of a cluster
  at: null, // number of the shown snapshot; null for the newest
  mark: null, // number of the snapshot to compare with
};

const RETRY_DELAY = 5000; // ms until a failed request for a snapshot is repeated
const details = new Map(); // number -> response of /snapshots/N, which never changes
const views = [];
let scheduled = false;

export const view = (draw) => views.push(draw);

export function changed() {
  if (scheduled) return;
  scheduled = true;
  requestAnimationFrame(() => {
    scheduled = false;
    for (const draw of views) draw(state);
  });
}

export function clear(model) {
  Object.assign(state, { model, now: null, past: [], history: [], more: null, fields: [], sample: null, jobs: [], quarantine: null, k: null, selected: null, at: null, mark: null });
  details.clear();
}

export const newest = () => state.history[state.history.length - 1] || null;
export const shownSnapshot = () => (state.at === null ? newest() : state.history.find((s) => s.id === state.at) || newest());
export const before = (entry, count) => {
  const end = state.history.indexOf(entry) + 1;
  return state.history.slice(Math.max(0, end - count), end);
};
export const serverNow = () => Date.now() + state.skew;

export function select(id) {
  state.selected = state.selected === id ? null : id;
  changed();
}

export function addStatus(now) {
  if (state.now && new Date(now.time) - new Date(state.now.time) > MAX_MESSAGE_GAP) state.past.push({});
  state.now = now;
  state.skew = new Date(now.time).getTime() - Date.now();
  state.past.push(now);
  state.past = state.past.slice(-MAX_STATUSES);
}

export function addSnapshot(entry) {
  if (newest() && entry.id <= newest().id) return;
  state.history.push(entry);
  if (state.history.length > MAX_SNAPSHOTS) state.history.shift();
}

// The whole snapshot: null until it is loaded, which redraws the views; false if loading failed.
export function detail(entry, load) {
  if (!entry) return null;
  const found = details.get(entry.id);
  if (found === undefined) {
    details.set(entry.id, null);
    load(entry.id).then((answer) => { details.set(entry.id, answer); changed(); }, () => { details.set(entry.id, false); changed(); setTimeout(() => details.delete(entry.id), RETRY_DELAY); });
    if (details.size > 100) details.delete(details.keys().next().value);
  }
  return found ?? null;
}

const median = (values) => [...values].sort((a, b) => a - b)[values.length >> 1] ?? 0;

// Whether there is a gap before each entry: its interval is far longer than those near it.
export function gapsBefore(entries) {
  const took = entries.map((s, i) => (i ? new Date(s.created_at) - new Date(entries[i - 1].created_at) : 0));
  return took.map((t, i) => i > 0 && t > Math.max(MIN_GAP, GAP_FACTOR * Math.max(median(took.slice(Math.max(1, i - 5), i)), median(took.slice(i + 1, i + 6)))));
}

// Values of entries for a line that is interrupted at gaps.
export function withGaps(entries, value) {
  const gap = gapsBefore(entries);
  return entries.flatMap((s, i) => (gap[i] ? [NaN, value(s) ?? NaN] : [value(s) ?? NaN]));
}
