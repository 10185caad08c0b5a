// Publish a file or a folder as a version: hashed here, sent where bytes are missing, checked by the control plane.
import { csrf, get, path, post, Problem } from "../api.js";
import { Copyable, Empty, ErrorBox, Field } from "../components.js";
import { bytes } from "../format.js";
import { html, useRef, useState } from "../html.js";
import { link } from "../router.js";
import { loadModel, may } from "../store.js";

const LARGEST = 2 ** 31;
const ATTEMPTS = 5;
const ENDED = new Set(["succeeded", "failed", "cancelled"]);

async function digest(file) {
  const hash = await crypto.subtle.digest("SHA-256", await file.arrayBuffer());
  return [...new Uint8Array(hash)].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** Send a part of a file from an offset. XMLHttpRequest, because fetch does not report what was sent. */
function send(url, file, offset, onSent) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("PUT", url);
    request.setRequestHeader("X-CSRF-Token", csrf());
    request.setRequestHeader("X-Actor", "page");
    request.setRequestHeader("Content-Type", "application/octet-stream");
    if (offset) request.setRequestHeader("Upload-Offset", String(offset));
    request.upload.onprogress = (event) => onSent(offset + event.loaded);
    request.onload = () => {
      if (request.status < 300) return resolve();
      let body = {};
      try {
        body = JSON.parse(request.responseText);
      } catch {
        // a proxy's page
      }
      reject(new Problem(body, request.status));
    };
    request.onerror = () => reject(new Problem({ title: "Interrupted", detail: "The connection broke off." }, 0));
    request.send(file.slice(offset));
  });
}

/** Send a file; after an interruption, only what the control plane does not have yet. */
async function upload(url, file, onSent) {
  for (let attempt = 1; ; attempt += 1) {
    let offset = 0;
    if (attempt > 1) {
      const head = await fetch(url, { method: "HEAD", credentials: "same-origin" }).catch(() => null);
      offset = Number(head?.headers.get("Upload-Offset") ?? 0);
    }
    try {
      return await send(url, file, offset, onSent);
    } catch (error) {
      if (error.status !== 0 || attempt === ATTEMPTS) throw error;
      await new Promise((resolve) => setTimeout(resolve, 1000 * attempt));
    }
  }
}

/** The files of a drop or a choice, with paths below the folder that was chosen: [{ path, file }]. */
function listed(files) {
  const all = [...files].map((file) => ({ path: file.webkitRelativePath || file.name, file }));
  const root = all[0]?.path.split("/")[0];
  const folder = all.every((one) => one.path.startsWith(`${root}/`));
  return all.map((one) => ({ ...one, path: folder ? one.path.slice(root.length + 1) : one.path }));
}

async function entriesOf(items) {
  const found = [];
  const walk = async (entry, prefix) => {
    if (entry.isFile) {
      const file = await new Promise((resolve, reject) => entry.file(resolve, reject));
      found.push({ path: prefix + entry.name, file });
      return;
    }
    const reader = entry.createReader();
    for (;;) {
      const part = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
      if (part.length === 0) return;
      for (const child of part) await walk(child, `${prefix}${entry.name}/`);
    }
  };
  const entries = [...items].map((item) => item.webkitGetAsEntry()).filter(Boolean);
  for (const entry of entries) await walk(entry, "");
  if (entries.length === 1 && entries[0].isDirectory) return found.map((one) => ({ ...one, path: one.path.slice(entries[0].name.length + 1) }));
  return found;
}

function nameFrom(path) {
  return path.replace(/\.[^.]+$/, "").replace(/[^A-Za-z0-9_.-]+/g, "-").replace(/^[^A-Za-z0-9]+/, "").slice(0, 64);
}

export function Publish() {
  const [files, setFiles] = useState([]);
  const [name, setName] = useState("");
  const [alias, setAlias] = useState("");
  const [reason, setReason] = useState("");
  const [over, setOver] = useState(false);
  const [stage, setStage] = useState(null);
  const [problem, setProblem] = useState(null);
  const [operation, setOperation] = useState(null);
  const single = useRef(null);
  const folder = useRef(null);
  const total = files.reduce((sum, one) => sum + one.file.size, 0);

  if (!may("deploy")) return html`<section class="view"><${Empty} title="Not permitted">Publishing needs a key with the scope deploy.<//></section>`;

  const choose = (chosen) => {
    setFiles(chosen);
    setOperation(null);
    setProblem(null);
    if (!name && chosen.length) setName(nameFrom(chosen.length === 1 ? chosen[0].path : chosen[0].file.webkitRelativePath.split("/")[0] || ""));
  };
  const drop = async (event) => {
    event.preventDefault();
    setOver(false);
    choose(await entriesOf(event.dataTransfer.items));
  };

  const publish = async (event) => {
    event.preventDefault();
    setProblem(null);
    setOperation(null);
    try {
      if (!crypto.subtle) throw new Problem({ title: "Not possible here", detail: "A browser computes digests only on https:// or on this machine; use tritonctl push." }, 0);
      const large = files.find((one) => one.file.size > LARGEST);
      if (large) throw new Problem({ title: "Too large for the page", detail: `${large.path} has ${bytes(large.file.size)}; use tritonctl push, which streams files of any size.` }, 0);
      const announced = [];
      for (const { path, file } of files) {
        setStage({ text: `Hashing ${path}` });
        announced.push({ path, size_bytes: file.size, sha256: await digest(file) });
      }
      const begun = await post("/v1/uploads", { files: announced });
      let before = 0;
      for (const [index, entry] of begun.files.entries()) {
        const { file } = files.find((one) => one.path === entry.path);
        if (entry.state === "missing") {
          await upload(`${path("uploads", begun.id, "blobs")}/${entry.sha256}`, file, (sent) =>
            setStage({ text: `Sending file ${index + 1} of ${files.length}`, share: (before + sent) / (total || 1) }),
          );
        }
        before += file.size;
      }
      let current = await post(path("models", name, "versions"), { upload_id: begun.id, reason, aliases: alias ? [alias] : [] });
      setStage(null);
      setOperation(current);
      while (!ENDED.has(current.state)) {
        await new Promise((resolve) => setTimeout(resolve, 300));
        current = await get(path("operations", current.id));
        setOperation(current);
      }
      if (current.state === "succeeded") loadModel(name);
    } catch (error) {
      if (!(error instanceof Problem)) throw error;
      setProblem(error);
      setStage(null);
    }
  };

  const busy = Boolean(stage) || (operation && !ENDED.has(operation.state));
  return html`<section class="view narrow">
    <header class="view-head"><h1>Publish</h1></header>
    <form onSubmit=${publish}>
      <div class=${over ? "drop over" : "drop"} onDragOver=${(event) => (event.preventDefault(), setOver(true))} onDragLeave=${() => setOver(false)} onDrop=${drop}>
        <p>${files.length ? `${files.length === 1 ? files[0].path : `${files.length} files`}, ${bytes(total)}` : "Drop a model file or folder here"}</p>
        <div class="row centered">
          <button type="button" onClick=${() => single.current.click()}>Choose a file</button>
          <button type="button" onClick=${() => folder.current.click()}>Choose a folder</button>
        </div>
        <input type="file" hidden ref=${single} aria-label="Model file" onChange=${(event) => choose(listed(event.target.files))} />
        <input type="file" hidden webkitdirectory ref=${folder} aria-label="Model folder" onChange=${(event) => choose(listed(event.target.files))} />
      </div>
      <p class="muted">ONNX, TorchScript, or a model directory of Triton. Other formats are converted with <code>tritonctl convert</code>.</p>
      <label class="stack">Model name
        <input required name="model" maxlength="128" value=${name} onInput=${(event) => setName(event.target.value)} />
      </label>
      <label class="stack">Alias (optional)
        <input name="alias" maxlength="64" value=${alias} onInput=${(event) => setAlias(event.target.value)} />
      </label>
      <label class="stack">Reason (recorded in the history)
        <input name="reason" maxlength="1024" value=${reason} onInput=${(event) => setReason(event.target.value)} />
      </label>
      <${ErrorBox} problem=${problem} />
      <button class="primary" disabled=${busy || files.length === 0}>${busy ? "Publishing…" : "Publish"}</button>
    </form>
    ${stage &&
    html`<div class="card above" role="status">
      <p>${stage.text}</p>
      ${stage.share !== undefined && html`<progress max="1" value=${stage.share} aria-label="Sent"></progress>`}
    </div>`}
    ${operation && html`<${Outcome} operation=${operation} name=${name} />`}
  </section>`;
}

function Outcome({ operation, name }) {
  const { state, progress, result, error, log } = operation;
  return html`<div class="card above" role="status">
    ${state === "succeeded" &&
    html`<h2>Published ${result.reference}</h2>
      <dl class="fields">
        <${Field} label="Format">${result.format}<//>
        <${Field} label="Golden samples">${result.golden_samples}<//>
        <${Field} label="Servable">${result.servable ? "yes" : "no"}<//>
      </dl>
      ${(result.warnings ?? []).map((one) => html`<p key=${one} class="warn">${one}</p>`)}
      <p class="above"><a href=${link("models", name, "versions")}>Open ${name}</a></p>`}
    ${state === "failed" && html`<${ErrorBox} problem=${{ title: error.title, message: error.detail }} />`}
    ${!ENDED.has(state) && html`<p>${progress.message || progress.stage || "Waiting…"}</p>${progress.fraction !== null && html`<progress max="1" value=${progress.fraction} aria-label="Done"></progress>`}`}
    ${log && html`<details><summary>Log</summary><${Copyable} text=${log} /></details>`}
  </div>`;
}
