// One request to a model: inputs by its signature, the answer, and the same as curl and Python.
import { get, path, post } from "../api.js";
import { Copyable, Empty, ErrorBox, useData } from "../components.js";
import { seconds, shape } from "../format.js";
import { html, useState } from "../html.js";
import { nest, readSamples } from "../npz.js";
import { may, state } from "../store.js";

const ELEMENTS_MAX = 1_000_000;

function zeros(tensor) {
  const sizes = tensor.shape.map((size) => (size < 0 ? 1 : size));
  const value = tensor.dtype === "BYTES" ? "" : tensor.dtype === "BOOL" ? false : 0;
  const count = sizes.reduce((product, size) => product * size, 1);
  if (count > ELEMENTS_MAX) throw new Error(`The input ${tensor.name} has ${count} elements, too many for this form; use tritonctl infer.`);
  return nest(Array(count).fill(value), sizes);
}

/** Parse the inputs' texts. Throws Error with the input's name. */
function parse(signature, texts) {
  return signature.inputs
    .filter((one) => texts[one.name]?.trim() || !one.optional)
    .map((one) => {
      try {
        return { name: one.name, data: JSON.parse(texts[one.name] ?? "") };
      } catch {
        throw new Error(`The input ${one.name} is not JSON: numbers or strings in nested lists, for example [[1, 2]].`);
      }
    });
}

/** A value of JSON as Python writes it. */
function literal(value) {
  if (value === null) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (Array.isArray(value)) return `[${value.map(literal).join(", ")}]`;
  return JSON.stringify(value);
}

function python(name, inputs) {
  const tensors = inputs.map((one) => `${JSON.stringify(one.name)}: ${literal(one.data)}`);
  return `import tritonctl

client = tritonctl.connect("${location.origin}")
print(client.infer("${name}", {${tensors.join(", ")}}))`;
}

function curl(name, inputs) {
  const key = state.session.required ? `-H "Authorization: Bearer $TRITONCTL_API_KEY" ` : "";
  return `curl '${location.origin}/v1/deployments/${name}/infer' ${key}-H 'Content-Type: application/json' \\
  -d '${JSON.stringify({ inputs }).replaceAll("'", "'\\''")}'`;
}

export function TryIt({ name, deployment, active }) {
  const version = active ?? deployment?.spec.version;
  const [found, problem] = useData(
    () => (version ? get(path("models", name, "versions", version)) : Promise.resolve(null)),
    [name, version],
  );
  const [texts, setTexts] = useState({});
  const [answer, setAnswer] = useState(null);
  const [failure, setFailure] = useState(null);
  const [busy, setBusy] = useState(false);
  if (!deployment) return html`<${Empty} title="Not deployed">Deploy a version, then send requests to it.<//>`;
  if (!may("infer")) return html`<${Empty} title="Not permitted">This key has no scope infer.<//>`;
  if (problem) return html`<${ErrorBox} problem=${problem} />`;
  if (!found) return html`<p class="muted">Loading…</p>`;
  const { signature, golden } = found.manifest;
  if (!signature) return html`<${Empty} title="No signature">The inputs of this version are not known.<//>`;

  const work = async (task) => {
    setBusy(true);
    setFailure(null);
    try {
      await task();
    } catch (error) {
      setFailure(error);
    }
    setBusy(false);
  };
  const useSample = (number) =>
    work(async () => {
      const response = await fetch(path("models", name, "versions", version, "samples"), { credentials: "same-origin" });
      if (!response.ok) throw new Error(`The samples cannot be read (status ${response.status}).`);
      const samples = await readSamples(await response.arrayBuffer());
      const sample = samples[number % samples.length];
      setTexts(Object.fromEntries(Object.entries(sample.inputs).map(([key, value]) => [key, JSON.stringify(value)])));
    });
  const send = (event) => {
    event.preventDefault();
    setAnswer(null);
    work(async () => {
      const inputs = parse(signature, texts);
      const began = performance.now();
      const response = await post(path("deployments", name, "infer"), { inputs });
      setAnswer({ ...response, inputs, whole: (performance.now() - began) / 1000 });
    });
  };
  const current = () => {
    try {
      return parse(signature, texts);
    } catch {
      return null;
    }
  };
  const inputs = current();
  return html`<div class="grid">
    <form class="card" onSubmit=${send}>
      <h2>Inputs</h2>
      <div class="row buttons-above">
        ${golden && Array.from({ length: Math.min(golden.count, 5) }, (_, index) => html`<button type="button" key=${index} class="small" onClick=${() => useSample(index)}>Sample ${index + 1}</button>`)}
        <button type="button" class="small" onClick=${() => work(async () => setTexts(Object.fromEntries(signature.inputs.map((one) => [one.name, JSON.stringify(zeros(one))]))))}>Zeros</button>
      </div>
      ${signature.inputs.map(
        (one) => html`<label class="stack" key=${one.name}>
          <span>${one.name} <span class="muted">${shape(one)}${one.optional ? ", optional" : ""}</span></span>
          <textarea rows="5" spellcheck="false" value=${texts[one.name] ?? ""} onInput=${(event) => setTexts({ ...texts, [one.name]: event.target.value })}></textarea>
        </label>`,
      )}
      <${ErrorBox} problem=${failure} />
      <button class="primary" disabled=${busy}>${busy ? "Waiting…" : "Send"}</button>
    </form>
    <div class="card">
      <h2>Answer</h2>
      ${answer
        ? html`<p>Version ${answer.model_version} on ${answer.server} answered in <strong>${seconds(answer.seconds)}</strong>; ${seconds(answer.whole)} with the way to this page.</p>
            ${answer.outputs.map(
              (one) => html`<div key=${one.name}>
                <p class="muted">${one.name} ${one.datatype}[${one.shape.join(",")}]</p>
                <${Copyable} text=${JSON.stringify(nest(one.data, one.shape))} />
              </div>`,
            )}`
        : html`<p class="muted">Fill in the inputs, or take a golden sample, and send.</p>`}
      ${inputs &&
      html`<h2 class="above">As a command</h2>
        <${Copyable} text=${curl(name, inputs)} />
        <h2 class="above">In Python</h2>
        <${Copyable} text=${python(name, inputs)} />`}
    </div>
  </div>`;
}
