// Servers and their devices: what the memory is used for, and what is wrong.
import { ask } from "../actions.js";
import { get } from "../api.js";
import { Empty, ErrorBox, Phase, useData } from "../components.js";
import { ago, bytes } from "../format.js";
import { html, useEffect } from "../html.js";
import { link } from "../router.js";
import { loadServers, may, quietly, useStore, wide } from "../store.js";

const EVERY_MS = 3000;
const DRAIN_MS = 1000;

/** The parts of a device's memory in the order of the bar: [key, label, bytes, models]. */
export function segments(device, models) {
  const byMode = { pinned: 0, resident: 0, "on-demand": 0 };
  const names = { pinned: [], resident: [], "on-demand": [] };
  for (const model of models) {
    const held = model.footprint.filter((part) => part.device === device.device).reduce((sum, part) => sum + (part.held_bytes ?? 0), 0);
    if (!held) continue;
    byMode[model.mode] += held;
    names[model.mode].push(`${model.model} ${bytes(held)}`);
  }
  const known = byMode.pinned + byMode.resident + byMode["on-demand"];
  const moving = device.loading_bytes + device.reserved_bytes + device.unloading_bytes;
  const other = Math.max(0, device.used_bytes - known - device.loading_bytes - device.unloading_bytes - device.unaccounted_bytes);
  const total = device.total_bytes || 1;
  const parts = [
    ["pinned", "Pinned", byMode.pinned, names.pinned],
    ["resident", "Resident", byMode.resident, names.resident],
    ["on-demand", "On demand", byMode["on-demand"], names["on-demand"]],
    ["moving", "Loading, unloading", moving, []],
    ["unattributed", "Unattributed", Math.max(0, device.unaccounted_bytes), []],
    ["other", "Other processes", other, []],
  ];
  const used = parts.reduce((sum, part) => sum + part[2], 0);
  parts.push(["free", "Free", Math.max(0, total - used), []]);
  return parts;
}

function Bar({ device, models }) {
  const parts = segments(device, models);
  const total = parts.reduce((sum, part) => sum + part[2], 0) || 1;
  let offset = 0;
  const label = parts.filter((part) => part[2] > 0).map((part) => `${part[1]} ${bytes(part[2])}`).join(", ");
  return html`<div class="device">
    <div class="device-head">
      <strong>${device.device}</strong>
      <span class="muted">${bytes(device.free_bytes)} of ${bytes(device.budget_bytes)} budget free · ${bytes(device.total_bytes)} in all</span>
    </div>
    <svg class="bar" viewBox="0 0 1000 24" preserveAspectRatio="none" role="img" aria-label=${`${device.device}: ${label}`}>
      ${parts.map(([key, name, size, names]) => {
        const width = (size / total) * 1000;
        const x = offset;
        offset += width;
        return width > 0 && html`<rect key=${key} class=${`seg-${key}`} x=${x} y="0" width=${Math.max(width, 1.5)} height="24">
          <title>${`${name}: ${bytes(size)}${names.length ? "\n" + names.join("\n") : ""}`}</title>
        </rect>`;
      })}
      <line class="budget" x1=${(device.budget_bytes / total) * 1000} x2=${(device.budget_bytes / total) * 1000} y1="0" y2="24" />
    </svg>
    <ul class="legend">
      ${parts.filter((part) => part[2] > 0).map(([key, name, size]) => html`<li key=${key}><i class=${`seg-${key}`}></i>${name} <span class="num">${bytes(size)}</span></li>`)}
    </ul>
  </div>`;
}

const GOOD = { Live: "True", Ready: "True", MetricsAvailable: "True" };

/** Conditions that are not as they should be. */
export function wrong(conditions) {
  return conditions.filter((one) => one.status !== (GOOD[one.type] ?? "False"));
}

/** Whether and why the server takes no new replicas, and what is left of a drain. */
function Cordon({ cordon }) {
  const done = cordon.drain && cordon.remaining.length === 0;
  const state = done ? "Drained" : cordon.drain ? "Draining" : "Cordoned";
  return html`<div class="warn">
    <strong>${state}</strong> ${cordon.reason} <span class="muted">${cordon.by}, ${ago(cordon.at)}</span>
    ${cordon.remaining.length > 0 &&
    html`<ul class="plain-list" aria-label="Left on the server">
      ${cordon.remaining.map((model) => html`<li key=${model}><strong>${model}</strong> ${cordon.stuck[model] ? `stays: ${cordon.stuck[model]}` : "is moving"}</li>`)}
    </ul>`}
  </div>`;
}

function Actions({ server }) {
  if (!may("admin") || !wide()) return null;
  const act = (kind) => () => ask({ kind, server: server.name });
  return html`<div class="row">
    ${!server.cordon && html`<button class="small" onClick=${act("cordon")}>Cordon</button>`}
    <button class="small" onClick=${act("drain")}>Drain</button>
    ${server.cordon && html`<button class="small" onClick=${act("uncordon")}>Uncordon</button>`}
  </div>`;
}

function Server({ server, memory }) {
  const problems = wrong(server.conditions);
  const models = memory?.models ?? [];
  return html`<article class="card server">
    <header>
      <h2>${server.name}</h2>
      <${Phase} phase=${server.state} />
      <span class="muted">${server.triton_version && `Triton ${server.triton_version}`} · ${server.grpc_url} · seen ${ago(server.observed_at)}</span>
      <${Actions} server=${server} />
    </header>
    ${server.cordon && html`<${Cordon} cordon=${server.cordon} />`}
    ${server.message && html`<p class="bad-text">${server.message}</p>`}
    ${problems.map((one) => html`<p key=${one.type} class="warn"><strong>${one.type}: ${one.status}</strong> ${one.message || one.reason}</p>`)}
    ${(memory?.devices ?? []).map((device) => html`<${Bar} key=${device.device} device=${device} models=${models} />`)}
    ${memory?.queue.length > 0 &&
    html`<p class="warn">${memory.queue.length} ${memory.queue.length === 1 ? "load waits" : "loads wait"} for memory: ${memory.queue.map((one) => one.model).join(", ")}</p>`}
    <div class="loaded">
      ${server.models
        .filter((one) => one.state === "READY")
        .map((one) => html`<a key=${`${one.model}:${one.version}`} class="tag" href=${link("models", one.model)}>${one.model}:${one.version}</a>`)}
    </div>
    ${memory?.evictions.length > 0 &&
    html`<details>
      <summary>Newest evictions (${memory.evictions.length})</summary>
      <ul class="plain-list">
        ${memory.evictions.map((one) => html`<li key=${one.at + one.victim}>${ago(one.at)}: <strong>${one.victim}</strong> for ${one.for_model} — ${one.why}</li>`)}
      </ul>
    </details>`}
    ${server.advisories.length > 0 &&
    html`<details>
      <summary>${server.advisories.length} security ${server.advisories.length === 1 ? "advisory" : "advisories"}</summary>
      <ul class="plain-list">${server.advisories.map((one) => html`<li key=${one}>${one}</li>`)}</ul>
    </details>`}
  </article>`;
}

export function Fleet() {
  const state = useStore();
  const [memory, problem] = useData(() => (wide() ? get("/v1/memory") : Promise.resolve(null)), [], EVERY_MS);
  const draining = state.servers.some((one) => one.cordon?.remaining.length > 0);
  useEffect(() => {
    // No event of a server reports what is loaded on it.
    const timer = setInterval(() => document.hidden || quietly(loadServers), draining ? DRAIN_MS : EVERY_MS);
    return () => clearInterval(timer);
  }, [draining]);
  const byServer = new Map((memory?.items ?? []).map((one) => [one.server, one]));
  return html`<section class="view">
    <header class="view-head"><h1>Fleet <span class="count">${state.servers.length}</span></h1></header>
    ${!wide() && html`<p class="muted">This key is for some models only, so the memory of the servers is not shown.</p>`}
    <${ErrorBox} problem=${problem} />
    ${state.servers.length === 0 && state.loaded && html`<${Empty} title="No Triton servers">Start one with <code>tritonctl up</code>, or name one in the settings.<//>`}
    ${state.servers.map((server) => html`<${Server} key=${server.name} server=${server} memory=${byServer.get(server.name)} />`)}
  </section>`;
}
