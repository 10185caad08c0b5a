// API keys: who may do what. A secret is shown once, when its key is created.
import { get, path, post, remove } from "../api.js";
import { Copyable, Dialog, Empty, ErrorBox, Scroll, useData } from "../components.js";
import { ago, date } from "../format.js";
import { html, useState } from "../html.js";
import { state } from "../store.js";

const SCOPES = [
  ["read", "see models, deployments and servers"],
  ["infer", "send requests to models, load and hold them"],
  ["deploy", "publish and deploy (includes read)"],
  ["code", "bring models that contain code (includes deploy)"],
  ["audit", "read the audit log"],
  ["admin", "everything, also keys"],
];

function Create({ onClose, onCreated }) {
  const [name, setName] = useState("");
  const [scopes, setScopes] = useState(["read"]);
  const [models, setModels] = useState("");
  const [days, setDays] = useState("");
  const [problem, setProblem] = useState(null);
  const [busy, setBusy] = useState(false);
  const toggle = (scope) => setScopes(scopes.includes(scope) ? scopes.filter((one) => one !== scope) : [...scopes, scope]);
  const submit = async (event) => {
    event.preventDefault();
    setBusy(true);
    try {
      const patterns = models.split(/[\s,]+/).filter(Boolean);
      const expires_at = days ? new Date(Date.now() + Number(days) * 86_400_000).toISOString() : null;
      onCreated(await post("/v1/keys", { name, scopes, models: patterns, expires_at }));
    } catch (error) {
      setProblem(error);
      setBusy(false);
    }
  };
  return html`<${Dialog} title="Create an API key" onClose=${onClose}>
    <form onSubmit=${submit}>
      <label class="stack">Name of its owner<input name="name" required maxlength="64" value=${name} onInput=${(event) => setName(event.target.value)} /></label>
      <fieldset>
        <legend>Scopes</legend>
        ${SCOPES.map(
          ([scope, text]) => html`<label key=${scope} class="check"><input type="checkbox" checked=${scopes.includes(scope)} onChange=${() => toggle(scope)} /> ${scope} <span class="muted">${text}</span></label>`,
        )}
      </fieldset>
      <label class="stack">Models (patterns such as team-a-*; empty: all)<input name="models" value=${models} onInput=${(event) => setModels(event.target.value)} /></label>
      <label class="stack">Days until it expires (empty: never)<input name="days" type="number" min="1" max="3650" value=${days} onInput=${(event) => setDays(event.target.value)} /></label>
      <${ErrorBox} problem=${problem} />
      <footer>
        <button type="button" onClick=${onClose}>Cancel</button>
        <button class="primary" disabled=${busy || !name || !scopes.length}>${busy ? "Working…" : "Create"}</button>
      </footer>
    </form>
  <//>`;
}

function Secret({ made, onClose }) {
  return html`<${Dialog} title=${`The key ${made.key.name}`} onClose=${onClose}>
    <p>Copy it now: it cannot be shown again.</p>
    <${Copyable} text=${made.secret} />
    <footer><button class="primary" onClick=${onClose}>Done</button></footer>
  <//>`;
}

function Revoke({ found, onClose, onRevoked }) {
  const [problem, setProblem] = useState(null);
  const revoke = () => remove(path("keys", found.id)).then(onRevoked, setProblem);
  return html`<${Dialog} title=${`Revoke ${found.name}`} onClose=${onClose}>
    <p>Requests with this key are refused from now on, and its sessions end. This cannot be undone.</p>
    <${ErrorBox} problem=${problem} />
    <footer>
      <button type="button" onClick=${onClose}>Cancel</button>
      <button class="danger" onClick=${revoke}>Revoke</button>
    </footer>
  <//>`;
}

export function Keys() {
  const [open, setOpen] = useState(null);
  const [found, problem, reload] = useData(() => get("/v1/keys"), []);
  const done = () => (setOpen(null), reload());
  if (!state.session.required) {
    return html`<section class="view">
      <header class="view-head"><h1>API keys</h1></header>
      <${Empty} title="No API keys">
        Every process on this machine can do everything. Create the first key with <code>tritonctl keys create NAME --scope admin</code>; from then on every
        request needs one.
      <//>
    </section>`;
  }
  return html`<section class="view">
    <header class="view-head">
      <h1>API keys</h1>
      <button class="primary" onClick=${() => setOpen({ kind: "create" })}>Create a key</button>
    </header>
    <${ErrorBox} problem=${problem} />
    ${found &&
    html`<${Scroll} label="API keys"><table class="table">
      <thead><tr><th>Name</th><th>Scopes</th><th>Models</th><th>State</th><th>Created</th><th>Expires</th><th></th></tr></thead>
      <tbody>
        ${found.items.map(
          (one) => html`<tr key=${one.id}>
            <td>${one.name}</td>
            <td>${one.scopes.join(", ")}</td>
            <td>${one.models.join(", ") || "all"}</td>
            <td class=${one.state === "active" ? "" : "muted"}>${one.state}</td>
            <td title=${`${one.created_by}, ${date(one.created_at)}`}>${ago(one.created_at)}</td>
            <td>${one.expires_at ? date(one.expires_at) : "never"}</td>
            <td>${one.state === "active" && html`<button class="small" aria-label=${`Revoke ${one.name}`} onClick=${() => setOpen({ kind: "revoke", found: one })}>Revoke</button>`}</td>
          </tr>`,
        )}
      </tbody>
    </table><//>`}
    ${open?.kind === "create" && html`<${Create} onClose=${() => setOpen(null)} onCreated=${(made) => (setOpen({ kind: "secret", made }), reload())} />`}
    ${open?.kind === "secret" && html`<${Secret} made=${open.made} onClose=${done} />`}
    ${open?.kind === "revoke" && html`<${Revoke} found=${open.found} onClose=${() => setOpen(null)} onRevoked=${done} />`}
  </section>`;
}
