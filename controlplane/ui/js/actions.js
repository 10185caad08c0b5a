// What changes something. Each shows first what will happen, then asks.
import { get, path, post, put, remove, request } from "./api.js";
import { Dialog, ErrorBox, useData } from "./components.js";
import { bytes, date, seconds } from "./format.js";
import { html, useState } from "./html.js";
import { changed, loadDeployment, loadModel, loadServers } from "./store.js";

let open = null;

/** Open the dialog for an action: { kind, model, … }. */
export function ask(action) {
  open = action;
  changed();
}

export function close() {
  open = null;
  changed();
}

export function ActionDialog() {
  if (!open) return null;
  const Form = FORMS[open.kind];
  return html`<${Form} key=${JSON.stringify(open)} action=${open} />`;
}

/** The frame of each action on a model or a server: the plan, a reason, and the button. */
function Confirm({ title, button, danger, plan, children, act, model, withReason = true, disabled }) {
  const [reason, setReason] = useState("");
  const [problem, setProblem] = useState(null);
  const [busy, setBusy] = useState(false);
  const submit = async (event) => {
    event.preventDefault();
    setBusy(true);
    try {
      await act(reason);
      if (model) {
        loadDeployment(model);
        loadModel(model);
      } else await loadServers();
      close();
    } catch (error) {
      setProblem(error);
      setBusy(false);
    }
  };
  return html`<${Dialog} title=${title} onClose=${close}>
    <form onSubmit=${submit}>
      ${children} ${plan}
      ${withReason &&
      html`<label class="stack">Reason (recorded in the history)
        <input name="reason" maxlength="1024" value=${reason} onInput=${(event) => setReason(event.target.value)} />
      </label>`}
      <${ErrorBox} problem=${problem} />
      <footer>
        <button type="button" onClick=${close}>Cancel</button>
        <button class=${danger ? "danger" : "primary"} disabled=${busy || disabled}>${busy ? "Working…" : button}</button>
      </footer>
    </form>
  <//>`;
}

const DECISIONS = {
  nothing: "Nothing needs to be loaded",
  admit: "Fits into free memory",
  evict: "Needs an eviction",
  queue: "Must wait for memory",
  refuse: "Cannot be loaded",
};

/** What a load would do on each server, from a dry run. */
function Plan({ plan, problem }) {
  if (problem) return html`<${ErrorBox} problem=${problem} />`;
  if (!plan) return html`<p class="muted">Computing the plan…</p>`;
  return html`<ul class="plan" aria-label="Plan">
    ${plan.servers.map(
      (server) => html`<li key=${server.server} class=${server.decision === "refuse" ? "refused" : ""}>
        <div><strong>${server.server}</strong> <span class="muted">${server.devices.join(", ")}</span></div>
        <div>${DECISIONS[server.decision] ?? server.decision}${server.why && `: ${server.why}`}</div>
        ${Object.entries(server.needed).map(
          ([device, needed]) => html`<div key=${device} class="muted">
            ${device}: needs ${bytes(needed)}, ${bytes(server.free[device] ?? 0)} free
          </div>`,
        )}
        ${server.evictions.map(
          (one) => html`<div key=${one.model}>Evicts <strong>${one.model}</strong> (${Object.values(one.bytes).map(bytes).join(", ")}): ${one.why}</div>`,
        )}
        ${server.beside === false && html`<div class="warn">The active version is unloaded first: about ${seconds(server.gap_seconds)} without answers</div>`}
        ${server.seconds > 0 &&
        html`<div class="muted">
          About ${seconds(server.seconds)}${server.seconds_why && ` (${server.seconds_why})`}${server.fetch_bytes > 0 ? `, ${bytes(server.fetch_bytes)} to fetch` : ""}
        </div>`}
      </li>`,
    )}
  </ul>`;
}

function versionsOf(model) {
  return get(path("models", model)).then((head) => head.versions.filter((one) => !one.deleted).reverse());
}

function Deploy({ action }) {
  const { model } = action;
  const [versions, problem] = useData(() => versionsOf(model), [model]);
  const [version, setVersion] = useState(action.version ?? null);
  const [strategy, setStrategy] = useState("");
  const [deployed] = useData(() => get(`/v1/deployments?name=${encodeURIComponent(model)}`).then((page) => page.items[0] ?? null), [model]);
  const chosen = version ?? versions?.find((one) => one.servable)?.number;
  const reference = `${model}:${chosen}`;
  const settings = withStrategy(deployed, strategy);
  const [plan, planProblem] = useData(
    () => (chosen ? put(`${path("deployments", model)}?dry_run=true`, { reference, settings }) : Promise.resolve(null)),
    [model, chosen, strategy, Boolean(deployed)],
  );
  return html`<${Confirm}
    title=${`Deploy ${model}`}
    button=${chosen ? `Deploy version ${chosen}` : "Deploy"}
    disabled=${!plan}
    model=${model}
    act=${(reason) => put(path("deployments", model), { reference, reason, settings })}
    plan=${html`<${Plan} plan=${plan} problem=${planProblem || problem} />`}
  >
    <label class="stack">Version
      <select value=${chosen} onChange=${(event) => setVersion(Number(event.target.value))}>
        ${(versions ?? []).map(
          (one) => html`<option key=${one.number} value=${one.number} disabled=${!one.servable}>
            ${one.number} · ${one.format} · ${bytes(one.size_bytes)} · ${date(one.published_at)}${one.servable ? "" : " · not servable"}
          </option>`,
        )}
      </select>
    </label>
    ${deployed &&
    html`<label class="stack">Strategy
      <select value=${strategy} onChange=${(event) => setStrategy(event.target.value)}>
        <option value="">as before (${deployed.spec.settings.rollout.kind})</option>
        ${Object.entries(STRATEGIES).map(([kind, text]) => html`<option key=${kind} value=${kind}>${kind}: ${text}</option>`)}
      </select>
    </label>`}
  <//>`;
}

const STRATEGIES = {
  immediate: "switch as soon as the new version is proved",
  canary: "a growing share of the requests, withdrawn when it is worse",
  shadow: "copies of requests, whose answers are compared",
  manual: "beside the active version until it is promoted",
};

/** The deployment's settings with another strategy; null keeps those of the previous revision. */
function withStrategy(deployed, kind) {
  if (!deployed || !kind) return null;
  const { settings } = deployed.spec;
  return { ...settings, rollout: { ...settings.rollout, kind } };
}

function Rollout({ action }) {
  const { model, verb, version } = action;
  const text = {
    promote: `Version ${version} becomes active now, regardless of the measurements.`,
    abort: `Version ${version} is withdrawn now; the old version answers all requests.`,
    pause: "The rollout stays at its current step. Measurements continue, and a worse version is still withdrawn.",
    resume: "The rollout continues from its current step.",
  }[verb];
  const button = verb[0].toUpperCase() + verb.slice(1);
  return html`<${Confirm}
    title=${`${button} the rollout of ${model}`}
    button=${button}
    danger=${verb === "abort"}
    model=${model}
    act=${(reason) => post(path("rollouts", model, verb), { reason })}
    plan=${html`<p>${text}</p>`}
  />`;
}

function Rollback({ action }) {
  const { model } = action;
  const [revisions, problem] = useData(() => get(`${path("deployments", model, "revisions")}?limit=20`).then((page) => page.items), [model]);
  const current = revisions?.[0];
  const others = (revisions ?? []).slice(1).filter((one) => !one.spec.deleted);
  const different = others.find((one) => one.spec.version !== current.spec.version) ?? others[0];
  const [picked, setPicked] = useState(action.revision ?? null);
  const target = others.find((one) => one.number === picked) ?? different;
  const [plan, planProblem] = useData(
    () =>
      target
        ? put(`${path("deployments", model)}?dry_run=true`, { reference: `${model}:${target.spec.version}`, settings: target.spec.settings })
        : Promise.resolve(null),
    [model, target?.number],
  );
  return html`<${Confirm}
    title=${`Roll back ${model}`}
    button=${target ? `Roll back to version ${target.spec.version}` : "Roll back"}
    disabled=${!plan}
    model=${model}
    act=${(reason) => post(path("deployments", model, "rollback"), { revision: target.number, reason })}
    plan=${target && html`<${Plan} plan=${plan} problem=${planProblem || problem} />`}
  >
    ${revisions && !target && html`<p>There is no earlier revision to go back to.</p>`}
    ${target &&
    html`<label class="stack">Revision
      <select value=${target.number} onChange=${(event) => setPicked(Number(event.target.value))}>
        ${others.map(
          (one) => html`<option key=${one.number} value=${one.number}>
            ${one.number} · version ${one.spec.version} · ${one.actor} · ${date(one.at)} ${one.reason && `· ${one.reason}`}
          </option>`,
        )}
      </select>
    </label>`}
  <//>`;
}

function Load({ action }) {
  const { model } = action;
  const [plan, problem] = useData(() => post(`${path("deployments", model, "load")}?dry_run=true`, {}), [model]);
  return html`<${Confirm}
    title=${`Load ${model}`}
    button="Load"
    disabled=${!plan}
    model=${model}
    act=${(reason) => post(path("deployments", model, "load"), { reason })}
    plan=${html`<${Plan} plan=${plan} problem=${problem} />`}
  />`;
}

function Unload({ action }) {
  const { model, held } = action;
  return html`<${Confirm}
    title=${`Unload ${model}`}
    button="Unload"
    danger
    model=${model}
    act=${(reason) => post(path("deployments", model, "unload"), { reason })}
    plan=${html`<p>
      The model is drained and unloaded on every server. The deployment stays, and the model stays unloaded until it is loaded
      again.${held ? ` This frees ${bytes(held)}.` : ""}
    </p>`}
  />`;
}

function Hold({ action }) {
  const { model } = action;
  const [minutes, setMinutes] = useState(30);
  const [plan, problem] = useData(() => post(`${path("deployments", model, "load")}?dry_run=true`, {}), [model]);
  return html`<${Confirm}
    title=${`Hold ${model}`}
    button=${`Hold for ${minutes} min`}
    withReason=${false}
    disabled=${!plan}
    model=${model}
    act=${() => post(path("deployments", model, "holds"), { ttl_seconds: minutes * 60, holder: "page" })}
    plan=${html`<${Plan} plan=${plan} problem=${problem} />`}
  >
    <p>The model is loaded, and no eviction and no idle time unloads it before the hold ends.</p>
    <label class="stack">Minutes
      <input type="number" min="1" max="1440" required value=${minutes} onInput=${(event) => setMinutes(Number(event.target.value))} />
    </label>
  <//>`;
}

function Undeploy({ action }) {
  const { model } = action;
  return html`<${Confirm}
    title=${`Undeploy ${model}`}
    button="Undeploy"
    danger
    model=${model}
    act=${(reason) => request("DELETE", `${path("deployments", model)}${reason ? `?reason=${encodeURIComponent(reason)}` : ""}`)}
    plan=${html`<p>The model is unloaded everywhere and its deployment is removed. Its versions stay in the registry.</p>`}
  />`;
}

function Cordon({ action }) {
  const { server } = action;
  return html`<${Confirm}
    title=${`Cordon ${server}`}
    button="Cordon"
    act=${(reason) => put(path("servers", server, "cordon"), { reason })}
    plan=${html`<p>The server takes no new replicas. Its models stay and keep serving.</p>`}
  />`;
}

function Uncordon({ action }) {
  const { server } = action;
  return html`<${Confirm}
    title=${`Uncordon ${server}`}
    button="Uncordon"
    withReason=${false}
    act=${() => remove(path("servers", server, "cordon"))}
    plan=${html`<p>The server takes new replicas again. Models that moved away do not come back by themselves.</p>`}
  />`;
}

function Drain({ action }) {
  const { server } = action;
  const [force, setForce] = useState(false);
  const [plan, problem] = useData(() => get(`${path("servers", server, "drain-plan")}?force=${force}`), [server, force]);
  const empty = plan && !plan.moves.length && !plan.ends.length && !plan.stays.length;
  return html`<${Confirm}
    title=${`Drain ${server}`}
    button="Drain"
    danger
    disabled=${!plan}
    act=${(reason) => put(path("servers", server, "cordon"), { drain: true, force, reason })}
    plan=${html`<${ErrorBox} problem=${problem} />
      ${!plan && !problem && html`<p class="muted">Computing the plan…</p>`}
      ${empty && html`<p>No model is placed on the server.</p>`}
      ${plan &&
      html`<ul class="plan" aria-label="Plan">
        ${plan.moves.map(
          (one) => html`<li key=${`${one.model} ${one.from_server}`}>
            <div><strong>${one.model}</strong> moves ${one.from_server === server ? "" : `from ${one.from_server} `}to <strong>${one.to_server}</strong></div>
            <div class="muted">${bytes(one.bytes)}, about ${seconds(one.seconds)}: ${one.why}</div>
          </li>`,
        )}
        ${plan.ends.map((one) => html`<li key=${one.model}><div><strong>${one.model}</strong> is unloaded</div><div class="muted">${one.why}</div></li>`)}
        ${plan.stays.map((one) => html`<li key=${one.model} class="refused"><div><strong>${one.model}</strong> stays</div><div class="muted">${one.why}</div></li>`)}
      </ul>`}`}
  >
    <p>
      The server takes no new replicas. Each model is loaded and proved on its new server before it is unloaded here; requests
      and sequences in flight end first.
    </p>
    <label><input type="checkbox" name="force" checked=${force} onChange=${(event) => setForce(event.target.checked)} /> Also unload models that no other server can have</label>
  <//>`;
}

const FORMS = {
  cordon: Cordon,
  uncordon: Uncordon,
  drain: Drain,
  deploy: Deploy,
  rollback: Rollback,
  rollout: Rollout,
  load: Load,
  unload: Unload,
  hold: Hold,
  undeploy: Undeploy,
};
