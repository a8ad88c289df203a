// The API reference, drawn from /openapi.json, so that it cannot differ from the API.

import { request, setToken } from "./api.js";

const METHODS = ["get", "post", "put", "patch", "delete"];
const main = document.getElementById("main");
const trouble = document.getElementById("trouble");
const form = document.getElementById("sign-in");

function make(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children.filter((child) => child !== null && child !== undefined && child !== ""));
  return made;
}

// Of Markdown, descriptions use only `code` and paragraphs.
const line = (text) => text.split("`").map((piece, i) => (i % 2 ? make("code", {}, piece) : piece));
const prose = (text) => (text || "").trim().split(/\n\s*\n/).filter(Boolean).map((part) => make("p", {}, ...line(part)));

const shown = (value) => make("pre", { tabindex: "0" }, typeof value === "string" ? value : JSON.stringify(value, null, 2));

function typeName(schema) {
  if (!schema) return "";
  if (schema.$ref) return schema.$ref.split("/").pop();
  const several = schema.anyOf || schema.oneOf;
  if (several) return several.map(typeName).join(" or ");
  if (schema.enum) return schema.enum.map((value) => JSON.stringify(value)).join(", ");
  if ("const" in schema) return JSON.stringify(schema.const);
  const type = [].concat(schema.type || "anything").join(" or ");
  const bounds = [["minimum", "≥"], ["maximum", "≤"], ["maxLength", "length ≤"], ["pattern", "like"]]
    .filter(([key]) => key in schema && !(schema[key] > Number.MAX_SAFE_INTEGER)) // the browser would round it
    .map(([key, sign]) => `${sign} ${schema[key]}`);
  const start = "default" in schema && schema.default !== null ? [`default ${JSON.stringify(schema.default)}`] : [];
  const more = [...bounds, ...start].join(", ");
  return (type === "array" ? `array of ${typeName(schema.items) || "anything"}` : type) + (more ? ` (${more})` : "");
}

function link(schema) {
  const kind = typeName(schema);
  const name = schema && (schema.$ref || (schema.items && schema.items.$ref));
  return name ? make("a", { href: `#schema-${name.split("/").pop()}` }, kind) : kind;
}

function table(caption, heads, rows) {
  if (!rows.length) return "";
  const head = make("tr", {}, ...heads.map((text) => make("th", { scope: "col" }, text)));
  const body = rows.map((cells) => make("tr", {}, ...cells.map((cell) => make("td", {}, ...(typeof cell === "string" ? line(cell) : [cell])))));
  return make("table", {}, make("caption", {}, caption), make("thead", {}, head), make("tbody", {}, ...body));
}

function contents(content) {
  return Object.entries(content || {}).flatMap(([kind, { schema, example, examples }]) => {
    const given = example !== undefined ? [example] : Object.values(examples || {}).map((one) => one.value);
    return [make("p", {}, make("code", {}, kind), " ", link(schema)), ...prose(schema && schema.description), ...given.map(shown)];
  });
}

function operation(path, method, spec) {
  const needs = spec.security && spec.security.length ? " needs a token" : "";
  const body = spec.requestBody ? [make("h3", {}, "Request body"), ...contents(spec.requestBody.content)] : [];
  const answers = Object.entries(spec.responses || {}).map(([status, answer]) =>
    make("details", {}, make("summary", {}, `${status} ${answer.description || ""}`), ...contents(answer.content)));
  return make("details", { id: `${method}-${path}` },
    make("summary", {}, make("span", { class: "method" }, method.toUpperCase()), make("code", {}, path),
      make("span", { class: "note" }, (spec.summary || "") + needs)),
    ...prose(spec.description),
    table("Parameters", ["name", "in", "type", "description"], (spec.parameters || []).map((p) =>
      [make("code", {}, p.name), p.in + (p.required ? "" : ", optional"), typeName(p.schema), p.description || ""])),
    ...body, make("h3", {}, "Responses"), ...answers);
}

function schemaOf(name, schema) {
  const required = new Set(schema.required || []);
  const rows = Object.entries(schema.properties || {}).map(([field, spec]) =>
    [make("code", {}, field), link(spec), (required.has(field) ? "" : "optional. ") + (spec.description || "")]);
  return make("details", { id: `schema-${name}` }, make("summary", {}, make("code", {}, name)), ...prose(schema.description),
    table("Members", ["name", "type", "description"], rows), ...(schema.examples || []).map(shown));
}

function section(title, ...children) {
  const id = `h-${title.replace(/\W+/g, "-")}`;
  return make("section", { "aria-labelledby": id }, make("h2", { id }, title), ...children);
}

function open() {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (target && target.tagName === "DETAILS") {
    target.open = true;
    target.scrollIntoView();
  }
}

async function draw() {
  try {
    form.hidden = (await request("/v1/me")).right !== "none";
    if (!form.hidden) return;
    const description = await request("/openapi.json");
    trouble.hidden = true;
    const groups = new Map();
    for (const [path, methods] of Object.entries(description.paths)) {
      for (const method of METHODS.filter((name) => name in methods)) {
        const tag = (methods[method].tags || ["service"])[0];
        groups.set(tag, [...(groups.get(tag) || []), operation(path, method, methods[method])]);
      }
    }
    const schemas = Object.entries((description.components || {}).schemas || {}).map(([name, schema]) => schemaOf(name, schema));
    main.replaceChildren(
      section(`${description.info.title} ${description.info.version}`, ...prose(description.info.description)),
      ...[...groups].map(([tag, operations]) => section(tag, ...operations)),
      section("schemas", ...schemas));
    open();
  } catch (error) {
    trouble.textContent = error.message;
    trouble.hidden = false;
    form.hidden = !(error.status === 401 || error.status === 403);
  }
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  setToken(document.getElementById("token").value.trim());
  draw();
});
window.addEventListener("hashchange", open);
draw();
