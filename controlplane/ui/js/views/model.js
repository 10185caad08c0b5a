// One model: what serves, its versions and history, its configuration and proof.
import { get, path } from "../api.js";
import { ask } from "../actions.js";
import { Copyable, Empty, ErrorBox, Field, LineChart, Phase, Scroll, Tabs, useData } from "../components.js";
import { ago, bytes, date, number, rate, seconds, shape } from "../format.js";
import { html, useEffect, useState } from "../html.js";
import { link } from "../router.js";
import { loadDeployment, loadModel, may, useStore } from "../store.js";
import { EventTable } from "./events.js";
import { ExplainTab } from "./explain.js";
import { wrong } from "./fleet.js";
import { NOT_DEPLOYED } from "./models.js";
import { RolloutTab } from "./rollout.js";
import { TryIt } from "./tryit.js";

const TABS = [
  ["overview", "Overview"],
  ["try", "Try it"],
  ["rollout", "Rollout"],
  ["versions", "Versions"],
  ["history", "History"],
  ["proof", "Proof"],
  ["explain", "Explain"],
  ["configuration", "Configuration"],
  ["events", "Events"],
];

export function Model({ name, tab = "overview", query }) {
  const state = useStore();
  const [asked, setAsked] = useState(false);
  useEffect(() => {
    setAsked(false);
    Promise.all([loadDeployment(name), loadModel(name)]).then(() => setAsked(true));
  }, [name]);
  const deployment = state.deployments.get(name);
  const model = state.models.get(name);
  if (!deployment && !model) {
    return html`<section class="view">
      <header class="view-head"><h1>${name}</h1></header>
      ${asked
        ? html`<${Empty} title="No such model">It may have been deleted. <a href=${link("models")}>All models</a><//>`
        : html`<${Empty} title="Loading…" />`}
    </section>`;
  }
  const phase = deployment ? (deployment.status?.phase ?? "Pending") : NOT_DEPLOYED;
  const active = deployment?.status?.servers.map((one) => one.serving_version).find(Boolean);
  const Section = { overview: Overview, try: TryIt, rollout: RolloutTab, versions: Versions, history: History, proof: ProofTab, explain: ExplainTab, configuration: Configuration, events: ModelEvents }[tab] ?? Overview;
  return html`<section class=${tab === "events" ? "view fill" : "view"}>
    <header class="view-head">
      <div>
        <p class="crumbs"><a href=${link("models")}>Models</a></p>
        <h1>${name} <${Phase} phase=${phase} />${active && html`<span class="muted sub">version ${active} answers</span>`}</h1>
      </div>
      <${Buttons} name=${name} deployment=${deployment} />
    </header>
    <${Tabs} tabs=${TABS} current=${tab} hrefOf=${(key) => link("models", name, key)} />
    <${Section} name=${name} deployment=${deployment} model=${model} active=${active} query=${query} />
  </section>`;
}

function Buttons({ name, deployment }) {
  const held = deployment?.memory.reduce((sum, one) => sum + one.footprint.reduce((part, device) => part + (device.held_bytes ?? 0), 0), 0);
  const loaded = deployment?.memory.some((one) => one.state === "loaded");
  return html`<div class="buttons">
    ${deployment && may("infer") && !loaded && html`<button onClick=${() => ask({ kind: "load", model: name })}>Load</button>`}
    ${deployment && may("infer") && html`<button onClick=${() => ask({ kind: "hold", model: name })}>Hold</button>`}
    ${deployment && may("deploy") && loaded && html`<button onClick=${() => ask({ kind: "unload", model: name, held })}>Unload</button>`}
    ${deployment && may("deploy") && html`<button onClick=${() => ask({ kind: "undeploy", model: name })}>Undeploy</button>`}
    ${deployment && may("deploy") && html`<button onClick=${() => ask({ kind: "rollback", model: name })}>Roll back</button>`}
    ${may("deploy") && html`<button class="primary" onClick=${() => ask({ kind: "deploy", model: name })}>Deploy</button>`}
  </div>`;
}

function Overview({ name, deployment, model }) {
  const [metrics, problem] = useData(
    () => (deployment ? get(`${path("deployments", name, "metrics")}?window=5m`) : Promise.resolve(null)),
    [name, Boolean(deployment)],
    5000,
  );
  if (!deployment) {
    return html`<${Empty} title="Not deployed">${model.versions.filter((one) => !one.deleted).length} published; deploy a version to serve it.<//>`;
  }
  const { spec, status } = deployment;
  const settings = spec.settings;
  const points = (metrics?.points ?? []).map((one) => ({ ...one, x: -one.ago_seconds }));
  return html`<div class="grid">
    ${status?.message && html`<p class=${`banner ${["Degraded", "Failed"].includes(status.phase) ? "bad" : ""}`}>${status.message}</p>`}
    <div class="card">
      <h2>Deployment</h2>
      <dl class="fields">
        <${Field} label="Reference">${spec.reference}<//>
        <${Field} label="Revision">${deployment.revision} by ${deployment.actor}, ${ago(deployment.at)}<//>
        <${Field} label="Mode">${settings.mode}, priority ${settings.priority}<//>
        <${Field} label="Replicas">${settings.min_replicas}${settings.max_replicas ? ` to ${settings.max_replicas}` : ""}<//>
        <${Field} label="Instances">${settings.instance_count} × ${settings.instance_kind}<//>
        <${Field} label="Rollout">${settings.rollout.kind}<//>
        <${Field} label="Update">${settings.update_strategy}, bake ${seconds(settings.bake_seconds)}<//>
        <${Field} label="Reason" wide>${deployment.reason}<//>
      </dl>
    </div>
    <div class="card">
      <h2>Memory</h2>
      ${deployment.memory.length === 0 && html`<p class="muted">No memory is reserved.</p>`}
      ${deployment.memory.map(
        (one) => html`<dl class="fields" key=${one.server}>
          <${Field} label=${one.server}>${one.state}: ${one.why}<//>
          ${one.footprint.map((part) => html`<${Field} key=${part.device} label=${part.device}>${bytes(part.held_bytes ?? part.bytes)} (${part.source})<//>`)}
          <${Field} label="Used">${one.last_used_at ? ago(one.last_used_at) : "not yet"}<//>
          <${Field} label="Load time">${seconds(one.load_seconds)}, ${one.loads} loads, ${one.evictions} evictions<//>
        </dl>`,
      )}
    </div>
    <div class="card">
      <h2>Traffic, 5 minutes</h2>
      <${ErrorBox} problem=${problem} />
      <${LineChart} label="Requests per second" points=${points.map((one) => ({ x: one.x, y: one.request_rate }))} format=${rate} />
      <${LineChart} label="p99 latency" points=${points.map((one) => ({ x: one.x, y: one.p99_seconds }))} format=${seconds} />
      ${metrics?.total &&
      html`<dl class="fields">
        <${Field} label="p50 / p99">${seconds(metrics.total.latency?.p50_seconds)} / ${seconds(metrics.total.latency?.p99_seconds)}<//>
        <${Field} label="Queue / compute">${seconds(metrics.total.queue_seconds)} / ${seconds(metrics.total.compute_seconds)}<//>
        <${Field} label="Failures">${metrics.total.failure_share === null ? "–" : `${(metrics.total.failure_share * 100).toPrecision(2)} %`}<//>
        <${Field} label="Batch size">${number(metrics.total.batch_size)}<//>
      </dl>`}
      ${(metrics?.objectives ?? []).map((one) => html`<p key=${one.kind} class=${one.burning ? "bad-text" : "muted"}>${one.kind}: ${one.target}${one.burning ? ", burning" : ""}</p>`)}
    </div>
    ${(status?.servers ?? []).map(
      (one) => html`<div class="card" key=${one.server}>
        <h2>${one.server} <${Phase} phase=${one.phase} /></h2>
        <dl class="fields">
          <${Field} label="Answers">${one.serving_version ?? "–"}<//>
          <${Field} label="Loaded">${one.loaded_versions.join(", ") || "–"}<//>
          ${one.bake_until && html`<${Field} label="Bake window until">${date(one.bake_until)}<//>`}
          <${Field} label="Probe p50 / p99">${seconds(one.health?.p50_seconds)} / ${seconds(one.health?.p99_seconds)}<//>
          ${Object.entries(one.seconds).map(([step, took]) => html`<${Field} key=${step} label=${step}>${seconds(took)}<//>`)}
        </dl>
        <ul class="conditions">
          ${one.conditions.map(
            (condition) => html`<li key=${condition.type}><span class=${isWrong(condition) ? "bad-text" : ""}>${condition.type}: ${condition.status}</span> <span class="muted">${condition.message || condition.reason}</span></li>`,
          )}
        </ul>
      </div>`,
    )}
  </div>`;
}

const GOOD = new Set(["Loaded", "Proved", "Ready", "Healthy"]);
const isWrong = (condition) => wrong([condition]).length > 0 && (GOOD.has(condition.type) ? condition.status === "False" : condition.status === "True" && condition.type !== "Progressing");

function Versions({ name, model, active }) {
  const versions = (model?.versions ?? []).filter((one) => !one.deleted).reverse();
  const [pickedLeft, setLeft] = useState(null);
  const [pickedRight, setRight] = useState(null);
  const left = pickedLeft ?? versions[1]?.number ?? null;
  const right = pickedRight ?? versions[0]?.number ?? null;
  const aliases = Object.entries(model?.aliases ?? {});
  return html`<div>
    <${Scroll} label="Versions"><table class="table">
      <thead><tr><th>Version</th><th>Format</th><th class="right">Size</th><th>Published</th><th class="wide-only">By</th><th><span class="hidden-text">Compare</span></th></tr></thead>
      <tbody>
        ${versions.map(
          (one) => html`<tr key=${one.number}>
            <td>
              <strong class="num">${one.number}</strong> ${one.number === active && html`<span class="tag good">active</span>`}
              ${aliases.filter(([, number]) => number === one.number).map(([alias]) => html`<span key=${alias} class="tag">@${alias}</span>`)}
              ${!one.servable && html`<span class="tag bad">not servable</span>`}
            </td>
            <td>${one.format}</td>
            <td class="right">${bytes(one.size_bytes)}</td>
            <td><span title=${date(one.published_at)}>${ago(one.published_at)}</span></td>
            <td class="wide-only">${one.published_by}</td>
            <td class="right">${may("deploy") && one.servable && html`<button class="small" onClick=${() => ask({ kind: "deploy", model: name, version: one.number })}>Deploy</button>`}</td>
          </tr>`,
        )}
      </tbody>
    </table><//>
    ${versions.length > 0 &&
    html`<div class="card">
      <h2>Compare</h2>
      <div class="row">
        <${Picker} label="Left version" versions=${versions} value=${left} onPick=${setLeft} />
        <${Picker} label="Right version" versions=${versions} value=${right} onPick=${setRight} />
      </div>
      <${Comparison} name=${name} numbers=${[left, right].filter((one) => one !== null)} />
    </div>`}
  </div>`;
}

function Picker({ label, versions, value, onPick }) {
  return html`<label class="stack">${label}
    <select value=${value} onChange=${(event) => onPick(Number(event.target.value))}>
      ${versions.map((one) => html`<option key=${one.number} value=${one.number}>${one.number}</option>`)}
    </select>
  </label>`;
}

/** The facts of a version that are compared: [label, value]. */
function facts(version, footprints) {
  const { manifest, entry } = version;
  const rows = [
    ["Format", entry.format],
    ["Size", bytes(entry.size_bytes)],
    ["Inputs", manifest.signature?.inputs.map((one) => `${one.name} ${shape(one)}`).join("\n") ?? "–"],
    ["Outputs", manifest.signature?.outputs.map((one) => `${one.name} ${shape(one)}`).join("\n") ?? "–"],
    ["Golden samples", manifest.golden ? String(manifest.golden.count) : "none"],
    ["Parity", manifest.parity ? manifest.parity.outputs.map((one) => `${one.output}: max ${number(one.max_absolute_error)}`).join("\n") : "–"],
    ["Origin", manifest.lineage?.source ?? "–"],
    ["Parameters", number(manifest.attributes?.parameters)],
    ["Opset", String(manifest.attributes?.opset ?? "–")],
  ];
  for (const [metric, value] of Object.entries(manifest.metrics)) rows.push([`Metric ${metric}`, number(value)]);
  for (const one of footprints) rows.push([`Memory on ${one.kind}`, bytes(one.resident_bytes)], [`Load time on ${one.kind}`, seconds(one.load_seconds)]);
  rows.push(["Digest", manifest.files.map((file) => `${file.path} ${file.sha256.slice(0, 12)}`).join("\n")]);
  return new Map(rows);
}

function Comparison({ name, numbers }) {
  const [found, problem] = useData(
    () =>
      Promise.all(
        numbers.map(async (one) => {
          const [version, footprints] = await Promise.all([
            get(path("models", name, "versions", one)),
            get(path("models", name, "versions", one, "footprints")),
          ]);
          return facts(version, footprints.items);
        }),
      ),
    [name, numbers.join()],
  );
  if (problem) return html`<${ErrorBox} problem=${problem} />`;
  if (!found || found.length !== numbers.length) return html`<p class="muted">Loading…</p>`;
  const labels = [...new Set(found.flatMap((one) => [...one.keys()]))];
  return html`<${Scroll} label="Comparison"><table class="table compare">
    <thead><tr><th></th>${numbers.map((one, index) => html`<th key=${index}>Version ${one}</th>`)}</tr></thead>
    <tbody>
      ${labels.map((label) => {
        const values = found.map((one) => one.get(label) ?? "–");
        return html`<tr key=${label} class=${values.length > 1 && values[0] !== values[1] ? "differs" : ""}>
          <th scope="row">${label}</th>
          ${values.map((value, index) => html`<td key=${index}>${value}</td>`)}
        </tr>`;
      })}
    </tbody>
  </table><//>`;
}

function changesOf(revision, before) {
  if (!before) return [];
  const changes = [];
  const walk = (prefix, one, other) => {
    for (const key of new Set([...Object.keys(one ?? {}), ...Object.keys(other ?? {})])) {
      const [was, is] = [other?.[key], one?.[key]];
      if (JSON.stringify(was) === JSON.stringify(is)) continue;
      if (is && was && typeof is === "object" && !Array.isArray(is)) walk(`${prefix}${key}.`, is, was);
      else changes.push(`${prefix}${key}: ${JSON.stringify(was) ?? "unset"} → ${JSON.stringify(is) ?? "unset"}`);
    }
  };
  walk("", revision.spec.settings, before.spec.settings);
  return changes;
}

function History({ name, deployment }) {
  const [revisions, problem] = useData(
    () => (deployment ? get(`${path("deployments", name, "revisions")}?limit=100`).then((page) => page.items) : Promise.resolve([])),
    [name, deployment?.revision],
  );
  const [changes, changeProblem] = useData(() => get(`${path("models", name, "history")}?limit=100`).then((page) => page.items), [name]);
  return html`<div class="grid">
    <div class="card">
      <h2>Deployment revisions</h2>
      <${ErrorBox} problem=${problem} />
      ${revisions?.length === 0 && html`<p class="muted">Not deployed yet.</p>`}
      <ol class="timeline">
        ${(revisions ?? []).map((one, index) => {
          const settings = changesOf(one, revisions[index + 1]);
          return html`<li key=${one.number} class=${index === 0 ? "current" : ""}>
            <div class="row">
              <strong>${one.spec.deleted ? "Undeployed" : `Version ${one.spec.version}`}</strong>
              <span class="muted">revision ${one.number}${one.spec.loaded || one.spec.deleted ? "" : ", unloaded"}</span>
              ${index > 0 && !one.spec.deleted && may("deploy") && html`<button class="small" onClick=${() => ask({ kind: "rollback", model: name, revision: one.number })}>Roll back to this</button>`}
            </div>
            <div class="muted"><time datetime=${one.at} title=${one.at}>${date(one.at)}</time> · ${one.actor}</div>
            ${one.reason && html`<div>${one.reason}</div>`} ${settings.map((change) => html`<div key=${change} class="change">${change}</div>`)}
          </li>`;
        })}
      </ol>
    </div>
    <div class="card">
      <h2>Model changes</h2>
      <${ErrorBox} problem=${changeProblem} />
      <ol class="timeline">
        ${(changes ?? []).map(
          (one, index) => html`<li key=${index}>
            <div>${one.reason || `revision ${one.number}`}</div>
            <div class="muted"><time datetime=${one.at} title=${one.at}>${date(one.at)}</time> · ${one.actor}</div>
          </li>`,
        )}
      </ol>
    </div>
  </div>`;
}

function ProofTab({ name, deployment }) {
  const [health, problem] = useData(
    () => (deployment ? get(path("deployments", name, "health")) : Promise.resolve(null)),
    [name, deployment?.revision],
    5000,
  );
  if (!deployment) return html`<${Empty} title="Not deployed">A version is proved when it is loaded.<//>`;
  return html`<div>
    <${ErrorBox} problem=${problem} />
    ${deployment.status?.servers.map(
      (server) => html`<div class="card" key=${server.server}>
        <h2>${server.server}</h2>
        ${server.proof
          ? html`<p>Version ${server.proof.version}: ${server.proof.samples} golden samples, ${server.proof.agrees ? "answers as recorded" : html`<span class="bad-text">answers differ</span>`}, ${seconds(server.proof.latency_seconds)} each, ${ago(server.proof.at)}. ${server.proof.message}</p>
              <${Scroll} label="Proof"><table class="table">
                <thead><tr><th>Output</th><th class="right">Max. absolute error</th><th class="right">allowed</th><th class="right">Max. relative error</th><th class="right">allowed</th><th></th></tr></thead>
                <tbody>
                  ${server.proof.outputs.map(
                    (one) => html`<tr key=${one.output}>
                      <td>${one.output}</td>
                      <td class="right">${number(one.max_absolute_error)}</td>
                      <td class="right muted">${number(one.tolerance?.absolute)}</td>
                      <td class="right">${number(one.max_relative_error)}</td>
                      <td class="right muted">${number(one.tolerance?.relative)}</td>
                      <td>${one.agrees ? "agrees" : html`<span class="bad-text">${one.reason || "differs"}</span>`}</td>
                    </tr>`,
                  )}
                </tbody>
              </table><//>`
          : html`<p class="muted">No proof yet.</p>`}
      </div>`,
    )}
    ${(health?.servers ?? []).map(
      (server) => html`<div class="card" key=${server.server}>
        <h2>Probes on ${server.server}</h2>
        <${Scroll} label="Probes"><table class="table">
          <thead><tr><th>Time</th><th>Kind</th><th>Version</th><th>Outcome</th><th class="right">Latency</th><th class="right">Error</th></tr></thead>
          <tbody>
            ${server.results.slice(-20).reverse().map(
              (one) => html`<tr key=${one.at}>
                <td title=${date(one.at)}>${ago(one.at)}</td>
                <td>${one.kind}</td>
                <td class="num">${one.version}</td>
                <td class=${one.outcome === "passed" ? "" : "bad-text"}>${one.outcome} ${one.message}</td>
                <td class="right">${seconds(one.latency_seconds)}</td>
                <td class="right">${number(one.max_absolute_error)}</td>
              </tr>`,
            )}
          </tbody>
        </table><//>
      </div>`,
    )}
  </div>`;
}

function Configuration({ name, deployment }) {
  const [entry, problem] = useData(
    () => (deployment ? get(path("deployments", name, "repository")) : Promise.resolve(null)),
    [name, deployment?.revision],
  );
  if (!deployment) return html`<${Empty} title="Not deployed">The configuration is made for a deployment.<//>`;
  if (problem) return html`<${ErrorBox} problem=${problem} />`;
  const config = entry?.files.find((file) => file.path === "config.pbtxt");
  return html`<div class="grid">
    <div class="card">
      <h2>config.pbtxt</h2>
      ${config ? html`<${Copyable} text=${atob(config.content)} />` : html`<p class="muted">Loading…</p>`}
      ${(entry?.notes ?? []).map((note) => html`<p key=${note} class="muted">${note}</p>`)}
    </div>
    <div class="card">
      <h2>Files</h2>
      <ul class="plain-list">
        ${(entry?.files ?? []).map((file) => html`<li key=${file.path}><code>${file.path}</code> <span class="muted">${bytes(file.size_bytes)}</span></li>`)}
      </ul>
      <h2>Settings</h2>
      <${Copyable} text=${JSON.stringify(deployment.spec.settings, null, 2)} />
    </div>
  </div>`;
}

function ModelEvents({ name }) {
  return html`<${EventTable} subject=${name} />`;
}
