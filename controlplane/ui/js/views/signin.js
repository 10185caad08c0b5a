// Sign-in with an API key, or with a code of `tritonctl ui`.
import { post } from "../api.js";
import { ErrorBox } from "../components.js";
import { html, useEffect, useState } from "../html.js";

export function SignIn({ code, onSession }) {
  const [key, setKey] = useState("");
  const [problem, setProblem] = useState(null);
  const [busy, setBusy] = useState(false);
  const open = async (body) => {
    setBusy(true);
    setProblem(null);
    try {
      onSession(await post("/v1/session", body));
    } catch (error) {
      setProblem(error);
      setBusy(false);
    }
  };
  useEffect(() => {
    if (!code) return;
    // The code works once: it is of no use in the browser's history.
    location.replace("#/models");
    open({ code });
  }, []);
  return html`<main class="signin">
    <form
      class="card"
      onSubmit=${(event) => {
        event.preventDefault();
        open({ api_key: key });
      }}
    >
      <img src="icon.svg" alt="" width="40" height="40" />
      <h1>Triton control plane</h1>
      <label class="stack">API key
        <input type="password" name="api_key" autocomplete="off" spellcheck="false" required autofocus value=${key} onInput=${(event) => setKey(event.target.value)} />
      </label>
      <${ErrorBox} problem=${problem} />
      <button class="primary" disabled=${busy}>${busy ? "Signing in…" : "Sign in"}</button>
      <p class="muted">On the machine of the control plane, <code>tritonctl ui</code> signs you in without a key.</p>
    </form>
  </main>`;
}
