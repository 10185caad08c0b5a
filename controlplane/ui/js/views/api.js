// The REST API as its OpenAPI document describes it.
import { get } from "../api.js";
import { Copyable, Empty, ErrorBox, Scroll, useData } from "../components.js";
import { html, useState } from "../html.js";

const METHODS = ["get", "put", "post", "patch", "delete", "head"];

/** The operations of a document: [{ tag, method, path, operation }], in the order of its tags. */
export function operationsOf(document) {
  const order = new Map(document.tags.map((tag, index) => [tag.name, index]));
  const found = [];
  for (const [path, item] of Object.entries(document.paths)) {
    for (const method of METHODS) {
      if (item[method]) found.push({ tag: item[method].tags?.[0] ?? "", method, path, operation: item[method] });
    }
  }
  return found.sort((one, other) => (order.get(one.tag) ?? 99) - (order.get(other.tag) ?? 99) || (one.path < other.path ? -1 : 1));
}

function resolve(document, schema) {
  const name = schema?.$ref?.split("/").at(-1);
  return name ? [name, document.components.schemas[name]] : ["", schema ?? {}];
}

/** A short name of a schema's type: "array of Model", "string or null". */
export function typeOf(schema) {
  if (!schema) return "";
  if (schema.$ref) return schema.$ref.split("/").at(-1);
  if (schema.anyOf) return schema.anyOf.map(typeOf).join(" or ");
  if (schema.allOf?.length === 1) return typeOf(schema.allOf[0]);
  if (schema.enum) return schema.enum.map((value) => JSON.stringify(value)).join(" or ");
  if (schema.const !== undefined) return JSON.stringify(schema.const);
  if (schema.type === "array") return `array of ${typeOf(schema.items) || "anything"}`;
  if (schema.type === "object" && typeof schema.additionalProperties === "object") return `map of ${typeOf(schema.additionalProperties)}`;
  return schema.format ? `${schema.type} (${schema.format})` : (schema.type ?? "anything");
}

function Rows({ label, rows }) {
  return html`<${Scroll} label=${label}>
    <table class="table">
      <thead><tr><th>${label}</th><th>Type</th><th>Meaning</th></tr></thead>
      <tbody>
        ${rows.map(
          (row) => html`<tr key=${row.name}>
            <td><code>${row.name}</code>${row.required && html` <span class="tag">required</span>`}</td>
            <td class="muted">${row.type}</td>
            <td>${row.description}${row.initial !== undefined && html` <span class="muted">Default: ${JSON.stringify(row.initial)}.</span>`}</td>
          </tr>`,
        )}
      </tbody>
    </table>
  <//>`;
}

function Schema({ document, schema }) {
  const [name, resolved] = resolve(document, schema.anyOf?.find((one) => one.$ref) ?? schema);
  const properties = Object.entries(resolved.properties ?? {});
  if (properties.length === 0) return html`<p class="muted">${typeOf(schema)}</p>`;
  return html`<${Rows}
    label=${name || "Body"}
    rows=${properties.map(([key, one]) => ({
      name: key,
      type: typeOf(one),
      description: one.description,
      required: resolved.required?.includes(key),
      initial: one.default,
    }))}
  />`;
}

function curl({ method, path, operation }, document) {
  const body = operation.requestBody?.content?.["application/json"]?.schema;
  const [, resolved] = resolve(document, body?.anyOf?.find((one) => one.$ref) ?? body);
  const example = resolved?.examples?.[0];
  const parts = ["curl", ...(method === "get" ? [] : ["-X", method.toUpperCase()]), `'${location.origin}${path}'`];
  if (operation.security?.length) parts.push('-H "Authorization: Bearer $KEY"');
  if (body) parts.push("-H 'Content-Type: application/json'", `-d '${JSON.stringify(example ?? {})}'`);
  return parts.join(" ");
}

function Operation({ document, one }) {
  const { method, path, operation } = one;
  const [open, setOpen] = useState(false);
  const scope = operation.security?.[0]?.apiKey?.[0];
  const success = Object.entries(operation.responses).find(([status]) => status.startsWith("2"));
  const answer = success?.[1].content?.["application/json"]?.schema;
  const body = operation.requestBody?.content?.["application/json"]?.schema;
  return html`<details class="operation" onToggle=${(event) => setOpen(event.target.open)}>
    <summary><span class="method">${method.toUpperCase()}</span> <code>${path}</code> <span class="muted">${operation.summary}</span></summary>
    ${open &&
    html`<div class="operation-body">
      <p>${operation.description}</p>
      <p class="muted">${scope ? `Needs an API key with the scope ${scope}, where keys are required.` : "Needs no API key."}</p>
      ${operation.parameters?.length > 0 &&
      html`<${Rows}
        label="Parameters"
        rows=${operation.parameters.map((item) => ({
          name: item.name,
          type: `${typeOf(item.schema)}, ${item.in}`,
          description: item.description,
          required: item.required,
          initial: item.schema?.default,
        }))}
      />`}
      ${body && html`<h3>Request body</h3><${Schema} document=${document} schema=${body} />`}
      ${success && html`<h3>Answer ${success[0]}</h3>`} ${answer && html`<${Schema} document=${document} schema=${answer} />`}
      <${Copyable} text=${curl(one, document)} />
    </div>`}
  </details>`;
}

export function Api() {
  const [document, problem] = useData(() => get("/openapi.json"), []);
  const [text, setText] = useState("");
  const needle = text.trim().toLowerCase();
  const found = (document ? operationsOf(document) : []).filter(
    ({ path, method, operation }) => !needle || `${method} ${path} ${operation.summary}`.toLowerCase().includes(needle),
  );
  const tags = [...new Set(found.map((one) => one.tag))];
  return html`<section class="view">
    <header class="view-head">
      <h1>REST API <span class="count">${document?.info.version}</span></h1>
      <input type="search" aria-label="Search routes" placeholder="Search" value=${text} onInput=${(event) => setText(event.target.value)} />
    </header>
    <p class="muted">The same as a document: <a href="/openapi.json">openapi.json</a>, for generators of clients.</p>
    <${ErrorBox} problem=${problem} />
    ${document && found.length === 0 && html`<${Empty} title="No route matches" />`}
    ${tags.map(
      (tag) => html`<div key=${tag} class="card">
        <h2>${tag} <span class="count">${document.tags.find((one) => one.name === tag)?.description}</span></h2>
        ${found.filter((one) => one.tag === tag).map((one) => html`<${Operation} key=${one.method + one.path} document=${document} one=${one} />`)}
      </div>`,
    )}
  </section>`;
}
