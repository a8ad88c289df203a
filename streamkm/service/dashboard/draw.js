// Elements, numbers and small charts. Everything goes in as text or attributes, so no record can bring markup along.

const SVG = "http://www.w3.org/2000/svg";

function made(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name === "text") node.textContent = value;
    else if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "style") Object.assign(node.style, value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat().filter((c) => c !== null && c !== undefined));
  return node;
}

export const el = (name, attributes, ...children) => made(document.createElement(name), attributes, children);
export const svg = (name, attributes, ...children) => made(document.createElementNS(SVG, name), attributes, children);
export const $ = (selector, root = document) => root.querySelector(selector);

export function fill(node, ...children) {
  node.replaceChildren(...children.flat().filter((c) => c !== null && c !== undefined));
}

// Tables are redrawn every second; the focused element keeps the focus.
export function refill(node, ...children) {
  const key = node.contains(document.activeElement) ? document.activeElement.dataset.key : undefined;
  fill(node, ...children);
  if (key !== undefined) node.querySelector(`[data-key="${CSS.escape(key)}"]`)?.focus({ preventScroll: true });
}

// Column headers; those that begin with "<" are of text columns.
export const headers = (names) => el("thead", {}, el("tr", {}, names.map((n) => el("th", { scope: "col", class: n.startsWith("<") ? "text" : null, text: n.replace("<", "") }))));

export function num(x, digits = 3) {
  if (x === null || x === undefined || !Number.isFinite(x)) return "–";
  const size = Math.abs(x);
  if (size !== 0 && (size >= 1e7 || size < 1e-3)) return x.toExponential(2);
  if (size >= 1000) return Math.round(x).toLocaleString("en");
  return String(Number(x.toPrecision(digits)));
}

export const percent = (x) => (!Number.isFinite(x) ? "–" : `${(100 * x).toFixed(x < 0.1 ? 1 : 0)} %`);

export function ago(seconds) {
  if (!Number.isFinite(seconds)) return "–";
  if (seconds < 10) return `${Math.max(0, seconds).toFixed(1)} s`;
  for (const [size, unit] of [[86400, "d"], [3600, "h"], [60, "min"]]) if (seconds >= 2 * size) return `${Math.round(seconds / size)} ${unit}`;
  return `${Math.round(seconds)} s`;
}

// Times with their zone, for comparison with logs.
export const clock = (when) => new Date(when).toLocaleString(undefined, { year: "numeric", month: "short", day: "numeric", hour: "2-digit", minute: "2-digit", second: "2-digit", timeZoneName: "short" });

export function extent(values) {
  let low = Infinity, high = -Infinity;
  for (const v of values) if (Number.isFinite(v)) { if (v < low) low = v; if (v > high) high = v; }
  if (low > high) return [0, 1];
  return low === high ? [low - 0.5, high + 0.5] : [low, high];
}

export const scale = ([from, to], [start, end]) => (v) => start + ((v - from) / (to - from)) * (end - start);

export function ticks([low, high], count = 4) {
  const raw = (high - low) / count, power = 10 ** Math.floor(Math.log10(raw));
  const step = power * [1, 2, 5, 10].find((m) => m * power >= raw);
  const found = [];
  for (let t = Math.ceil(low / step) * step; t <= high + step * 1e-9; t += step) found.push(Number(t.toPrecision(12)));
  return found;
}

// A line through points; it stops where one is not known, and a point without neighbours is a dot.
export function path(points) {
  const known = points.map(([x, y]) => Number.isFinite(x) && Number.isFinite(y));
  return points.map(([x, y], i) => (!known[i] ? "" : `${known[i - 1] ? "L" : "M"}${x.toFixed(1)},${y.toFixed(1)}${known[i - 1] || known[i + 1] ? "" : "h1"}`)).join("");
}

export function spark(values, label, { width = 150, height = 34 } = {}) {
  const known = values.filter(Number.isFinite);
  const picture = svg("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": label });
  if (known.length > 1) {
    const x = scale([0, values.length - 1], [2, width - 2]), [low, high] = extent(known);
    const y = scale([Math.min(low, high * 0.9), high], [height - 3, 3]);
    picture.append(svg("path", { class: "spark", d: path(values.map((v, i) => [x(i), y(v)])) }));
  }
  return picture;
}

// A line over k with marks on some of them.
export function lines({ title, xs, ys, marks, width = 420, height = 200 }) {
  const x = scale(extent(xs), [52, width - 14]), y = scale(extent([0, ...ys]), [height - 28, 16]);
  const picture = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${title}: ${xs.map((k, i) => `${k}: ${num(ys[i])}`).join(", ")}` });
  for (const t of ticks(extent([0, ...ys]))) picture.append(svg("path", { class: "axis", d: `M52,${y(t)}H${width - 14}` }), svg("text", { x: 46, y: y(t) + 4, "text-anchor": "end", class: "soft", text: num(t) }));
  const every = Math.ceil(xs.length / 10);
  xs.forEach((k, i) => { if (i % every === 0) picture.append(svg("text", { x: x(k), y: height - 8, "text-anchor": "middle", class: "soft", text: k })); });
  picture.append(svg("path", { class: "spark", d: path(xs.map((k, i) => [x(k), y(ys[i])])) }));
  for (const { at, text, dash } of marks) {
    const i = xs.indexOf(at);
    if (i < 0) continue;
    picture.append(svg("path", { class: "ink", d: `M${x(at)},16V${height - 28}`, "stroke-dasharray": dash ? "4 3" : null }), svg("circle", { cx: x(at), cy: y(ys[i]), r: 4, fill: "var(--mark)" }), svg("text", { x: x(at) + (i > xs.length / 2 ? -6 : 6), y: dash ? 42 : 26, "text-anchor": i > xs.length / 2 ? "end" : "start", class: "halo", text }));
  }
  return el("figure", { style: { margin: 0 } }, picture, el("figcaption", { class: "note", text: title }));
}

const tip = () => $("#tip");
export function showTip(text, x, y) {
  const box = tip();
  box.textContent = text;
  box.hidden = false;
  box.style.left = `${Math.min(x + 14, innerWidth - box.offsetWidth - 8)}px`;
  box.style.top = `${Math.min(y + 14, innerHeight - box.offsetHeight - 8)}px`;
}
export const hideTip = () => { tip().hidden = true; };
