// All models: search, filter, sort; load, unload and hold.
import { get, path } from "../api.js";
import { ask } from "../actions.js";
import { Empty, Phase, useNow, VirtualTable } from "../components.js";
import { ago, bytes, distance, rate, seconds } from "../format.js";
import { html, useEffect, useRef, useState } from "../html.js";
import { link } from "../router.js";
import { changed, may, useStore } from "../store.js";

export const NOT_DEPLOYED = "Not deployed";
const METRICS_MS = 10_000;
const AT_ONCE = 4;

/** One row per model: its deployment, if it has one, and its versions. */
export function rowsOf(state) {
  const rows = [];
  for (const deployment of state.deployments.values()) {
    const { spec, status, memory } = deployment;
    rows.push({
      model: deployment.model,
      phase: status?.phase ?? "Pending",
      message: status?.message ?? "",
      active: status?.servers.map((one) => one.serving_version).find(Boolean) ?? null,
      desired: spec.version,
      alias: spec.reference.includes("@") ? spec.reference.split("@")[1] : "",
      mode: spec.settings.mode,
      loaded: spec.loaded,
      at: deployment.at,
      held: memory.reduce((sum, one) => sum + one.footprint.reduce((part, device) => part + (device.held_bytes ?? 0), 0), 0),
      rate: memory.reduce((sum, one) => sum + one.rate_per_second, 0),
      expires: memory.map((one) => one.expires_at).filter(Boolean).sort().at(-1) ?? null,
      heldUntil: memory.map((one) => one.held_until).filter(Boolean).sort().at(-1) ?? null,
      resident: memory.some((one) => one.state === "loaded"),
      rollout: Boolean(deployment.spec.rollout && !deployment.spec.rollout.ended),
    });
  }
  for (const model of state.models.values()) {
    if (state.deployments.has(model.name) || !model.versions.some((one) => !one.deleted)) continue;
    const newest = model.versions.filter((one) => !one.deleted).at(-1);
    rows.push({ model: model.name, phase: NOT_DEPLOYED, message: "", active: null, desired: null, alias: "", mode: "", loaded: false, at: newest.published_at, held: 0, rate: 0, expires: null, heldUntil: null, resident: false });
  }
  return rows;
}

const metrics = new Map();
const inFlight = new Set();

/** Read the metrics of the models in view; each at most every ten seconds, a few at once. */
async function readMetrics(models) {
  const due = models.filter((model) => !inFlight.has(model) && Date.now() - (metrics.get(model)?.at ?? 0) > METRICS_MS);
  due.forEach((model) => inFlight.add(model));
  const next = async () => {
    for (let model = due.shift(); model; model = due.shift()) {
      try {
        const found = await get(`${path("deployments", model, "metrics")}?window=5m`);
        metrics.set(model, { at: Date.now(), total: found.total, objectives: found.objectives });
      } catch {
        metrics.set(model, { at: Date.now(), total: null, objectives: [] });
      }
      inFlight.delete(model);
      changed();
    }
  };
  await Promise.all(Array.from({ length: AT_ONCE }, next));
}

function burnOf(objectives) {
  if (!objectives?.length) return "–";
  const worst = Math.max(...objectives.flatMap((one) => one.windows.map((window) => window.short_rate)));
  return html`<span class=${objectives.some((one) => one.burning) ? "bad-text" : ""}>${worst.toPrecision(2)}×</span>`;
}

function TimeToLive({ row }) {
  const now = useNow();
  if (row.heldUntil && Date.parse(row.heldUntil) > now) return html`<span title="Held until then">held ${distance(row.heldUntil, now)}</span>`;
  if (row.expires) return html`<span title="Unloaded then, if nobody asks">${distance(row.expires, now)}</span>`;
  return "–";
}

function Actions({ row }) {
  if (row.phase === NOT_DEPLOYED) {
    return may("deploy") && html`<button class="small" onClick=${() => ask({ kind: "deploy", model: row.model })}>Deploy</button>`;
  }
  return html`${may("infer") && !row.resident && html`<button class="small" onClick=${() => ask({ kind: "load", model: row.model })}>Load</button>`}
  ${may("infer") && html`<button class="small" onClick=${() => ask({ kind: "hold", model: row.model })}>Hold</button>`}
  ${may("deploy") && row.resident && html`<button class="small" onClick=${() => ask({ kind: "unload", model: row.model, held: row.held })}>Unload</button>`}`;
}

const SORTS = {
  model: (row) => row.model,
  phase: (row) => row.phase,
  held: (row) => row.held,
  rate: (row) => row.rate,
  at: (row) => row.at,
};

const COLUMNS = [
  {
    key: "model",
    label: "Model",
    sort: true,
    cell: (row) => html`<a class="name" href=${link("models", row.model)} title=${row.model}>${row.model}</a>`,
  },
  { key: "phase", label: "Phase", sort: true, cell: (row) => html`<span title=${row.message}><${Phase} phase=${row.phase} /></span>` },
  {
    key: "active",
    label: "Active",
    cell: (row) =>
      row.desired === null
        ? "–"
        : html`<span class="num">${row.active ?? "–"}</span>${row.desired !== row.active && row.loaded && html`<span class="muted"> → ${row.desired}</span>`}${row.alias && html` <span class="tag">@${row.alias}</span>`}`,
  },
  { key: "mode", label: "Mode", className: "widest-only", cell: (row) => html`<span class="muted">${row.mode}</span>` },
  { key: "held", label: "Memory", sort: true, className: "right", cell: (row) => (row.held ? bytes(row.held) : "–") },
  { key: "rate", label: "Req/s", sort: true, className: "right wide-only", cell: (row) => rate(metrics.get(row.model)?.total?.request_rate ?? row.rate) },
  { key: "p99", label: "p99", className: "right wide-only", cell: (row) => seconds(metrics.get(row.model)?.total?.latency?.p99_seconds) },
  { key: "burn", label: "Burn", className: "right wide-only", cell: (row) => burnOf(metrics.get(row.model)?.objectives) },
  { key: "ttl", label: "Expires", className: "right wide-only", cell: (row) => html`<${TimeToLive} row=${row} />` },
  { key: "at", label: "Changed", sort: true, className: "right widest-only", cell: (row) => html`<span class="muted" title=${row.at}>${ago(row.at)}</span>` },
  { key: "actions", label: html`<span class="hidden-text">Actions</span>`, className: "row-actions", cell: (row) => html`<${Actions} row=${row} />` },
];
const TEMPLATE = "minmax(160px, 2.2fr) 120px 110px 90px 90px 70px 80px 64px 90px 90px 140px";

export function Models() {
  const state = useStore();
  const [search, setSearch] = useState("");
  const [phase, setPhase] = useState("");
  const [sort, setSort] = useState({ key: "model", down: false });
  const [visible, setVisible] = useState([]);
  const input = useRef(null);

  useEffect(() => {
    const shortcut = (event) => {
      if (event.key === "/" && !event.target.closest?.("input, textarea, select, dialog")) {
        event.preventDefault();
        input.current.focus();
      }
    };
    addEventListener("keydown", shortcut);
    return () => removeEventListener("keydown", shortcut);
  }, []);

  const names = visible.filter((row) => row.phase !== NOT_DEPLOYED).map((row) => row.model);
  useEffect(() => {
    const work = () => !document.hidden && readMetrics(names);
    work();
    const timer = setInterval(work, METRICS_MS);
    return () => clearInterval(timer);
  }, [names.join("\n")]);

  const all = rowsOf(state);
  const needle = search.trim().toLowerCase();
  const found = needle ? all.filter((row) => row.model.toLowerCase().includes(needle)) : all;
  const counts = new Map();
  for (const row of found) counts.set(row.phase, (counts.get(row.phase) ?? 0) + 1);
  const value = SORTS[sort.key];
  const order = (one, other) => (value(one) < value(other) ? -1 : value(one) > value(other) ? 1 : one.model < other.model ? -1 : 1);
  const rows = phase ? found.filter((row) => row.phase === phase) : [...found];
  rows.sort((one, other) => (sort.down ? order(other, one) : order(one, other)));

  const onSort = (key) => setSort((was) => ({ key, down: was.key === key ? !was.down : key !== "model" && key !== "phase" }));
  const phases = [...counts.keys()].sort();
  return html`<section class="view fill">
    <header class="view-head">
      <h1>Models <span class="count">${found.length === all.length ? all.length : `${found.length} of ${all.length}`}</span></h1>
      <input type="search" ref=${input} aria-label="Search models" placeholder="Search ( / )" value=${search} onInput=${(event) => setSearch(event.target.value)} />
    </header>
    <div class="chips" role="group" aria-label="Phase">
      <button aria-pressed=${phase === ""} onClick=${() => setPhase("")}>All</button>
      ${phases.map(
        (one) => html`<button key=${one} aria-pressed=${phase === one} onClick=${() => setPhase(phase === one ? "" : one)}>
          <${Phase} phase=${one} /> <span class="count">${counts.get(one)}</span>
        </button>`,
      )}
    </div>
    <${VirtualTable}
      label="Models"
      columns=${COLUMNS}
      rows=${rows}
      keyOf=${(row) => row.model}
      template=${TEMPLATE}
      sort=${sort}
      onSort=${onSort}
      onVisible=${setVisible}
      empty=${state.loaded
        ? html`<${Empty} title=${all.length ? "No model matches" : "No models yet"}>
            ${all.length ? "Change the search or the filter." : html`Publish one with <code>tritonctl push model.onnx</code>.`}
          <//>`
        : html`<${Empty} title="Loading…" />`}
    />
  </section>`;
}
