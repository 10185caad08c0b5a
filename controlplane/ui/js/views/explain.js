// Why a model is where it is: placement, and on each server its state, the memory it needs, and what happens next.
import { get, path } from "../api.js";
import { Empty, ErrorBox, Field, useData } from "../components.js";
import { ago, bytes } from "../format.js";
import { html } from "../html.js";

const EVERY_MS = 3000;

function Placement({ placement }) {
  const { replicas, min_replicas: least, max_replicas: most } = placement;
  return html`<div class="card">
    <h2>Placement</h2>
    <dl class="fields">
      <${Field} label="Replicas">${replicas}${least === most ? "" : ` (${least} to ${most})`}<//>
      ${placement.replicas_why && html`<${Field} label="Why so many" wide>${placement.replicas_why}<//>`}
    </dl>
    <ul class="plan" aria-label="Assignments">
      ${placement.assignments.map(
        (one) => html`<li key=${one.server}>
          <div><strong>${one.server}</strong> <span class="muted">${one.devices.join(", ")}${one.bytes > 0 ? ` · ${bytes(one.bytes)}` : ""}</span></div>
          <div>${one.why}</div>
        </li>`,
      )}
    </ul>
    ${placement.unplaced && html`<p class="warn">${placement.unplaced}</p>`}
  </div>`;
}

function Server({ server }) {
  const devices = Object.keys(server.needed);
  return html`<div class="card">
    <h2>${server.server}</h2>
    <p>${server.model.state}${server.model.why ? `: ${server.model.why}` : ""}</p>
    ${server.next && html`<p><span class="muted">Next:</span> ${server.next}</p>`}
    ${devices.map(
      (device) => html`<p key=${device} class="muted">
        ${device}: needs ${bytes(server.needed[device])}, ${bytes(server.free[device] ?? 0)} free, evictions could free ${bytes(server.could_be_freed[device] ?? 0)}
      </p>`,
    )}
    ${server.holders.length > 0 &&
    html`<h3>Who has the memory</h3>
      <ul class="plain-list">
        ${server.holders.map((one) => html`<li key=${one.model + one.device}><strong>${one.model || "unattributed"}</strong> ${bytes(one.bytes)} of ${one.device} <span class="muted">${one.why}</span></li>`)}
      </ul>`}
    ${server.evictions.length > 0 &&
    html`<h3>Evictions</h3>
      <ul class="plain-list">
        ${server.evictions.map((one) => html`<li key=${one.at + one.victim}>${ago(one.at)}: <strong>${one.victim}</strong> for ${one.for_model} — ${one.why}</li>`)}
      </ul>`}
  </div>`;
}

export function ExplainTab({ name, deployment }) {
  const [found, problem] = useData(
    () => (deployment ? get(path("deployments", name, "explanation")) : Promise.resolve(null)),
    [name, Boolean(deployment)],
    EVERY_MS,
  );
  if (!deployment) return html`<${Empty} title="Not deployed">There is nothing to explain before a version is deployed.<//>`;
  if (!found) return problem ? html`<${ErrorBox} problem=${problem} />` : html`<p class="muted">Loading…</p>`;
  return html`<div class="grid">
    <${ErrorBox} problem=${problem} />
    ${found.placement && html`<${Placement} placement=${found.placement} />`}
    ${found.servers.map((server) => html`<${Server} key=${server.server} server=${server} />`)}
  </div>`;
}
