// Colour and shape of a cluster follow its id, so they never change.

import { svg } from "./draw.js";

let palette = [];
export async function loadColours() { palette = await (await fetch("/assets/palette.json")).json(); }
export const colour = (id) => palette[id % palette.length];

// Where colours repeat, the shape differs.
const SHAPES = [
  (r) => `M${-r},0A${r},${r} 0 1 0 ${r},0A${r},${r} 0 1 0 ${-r},0Z`,
  (r) => `M${-r},${-r}H${r}V${r}H${-r}Z`,
  (r) => `M0,${-1.25 * r}L${1.15 * r},${0.85 * r}H${-1.15 * r}Z`,
  (r) => `M0,${-1.35 * r}L${1.35 * r},0L0,${1.35 * r}L${-1.35 * r},0Z`,
  (r) => `M${-r},${-r / 3}H${-r / 3}V${-r}H${r / 3}V${-r / 3}H${r}V${r / 3}H${r / 3}V${r}H${-r / 3}V${r / 3}H${-r}Z`,
];
export const shape = (id, r) => SHAPES[round(id)](r);

// And so does the hatching of an area.
const round = (id) => Math.floor(id / palette.length) % SHAPES.length;
export const hatch = (id) => (round(id) ? `url(#hatch-${round(id)})` : null);
export const hatches = () => svg("defs", {}, [1, 2, 3, 4].map((n) => svg("pattern", { id: `hatch-${n}`, width: 8, height: 8, patternUnits: "userSpaceOnUse", patternTransform: `rotate(${[0, 45, -45, 0, 90][n]})` },
  svg("path", { d: "M0,2H8", stroke: "var(--card)", "stroke-width": 2, opacity: 0.7 }))));

export const swatch = (id) => svg("svg", { width: 16, height: 16, viewBox: "-8 -8 16 16", "aria-hidden": "true" },
  svg("path", { d: shape(id, 6), fill: colour(id), stroke: "currentColor", "stroke-width": 1 }));
