// A rollout: its step, what was measured, and how far the evidence is from the decision.
import { get, path } from "../api.js";
import { ask } from "../actions.js";
import { Empty, ErrorBox, Field, Scroll, useData } from "../components.js";
import { date, distance, number, seconds } from "../format.js";
import { html } from "../html.js";
import { may } from "../store.js";

const EVERY_MS = 2000;

/** How far the evidence is on its way to the decision, 0 to 1; on the scale of the odds' logarithm. */
export function progress(test) {
  if (test.odds <= 1) return 0;
  return Math.min(1, Math.log(test.odds) / Math.log(test.needed_odds));
}

function Evidence({ test }) {
  const share = progress(test);
  return html`<li>
    <div class="row"><strong>${test.signal}</strong><span class=${test.worse ? "bad-text" : "muted"}>${test.figures}</span></div>
    <svg class="meter" viewBox="0 0 100 6" preserveAspectRatio="none" role="img" aria-label=${`${test.signal}: odds ${number(test.odds)} of ${number(test.needed_odds)} that the new version is worse`}>
      <rect width="100" height="6" class="meter-rest" /><rect width=${share * 100} height="6" class=${test.worse ? "meter-bad" : "meter-part"} />
    </svg>
    <div class="muted">Odds that the new version is worse: ${number(test.odds)}; it is withdrawn at ${number(test.needed_odds)}</div>
  </li>`;
}

export function RolloutTab({ name, deployment }) {
  const has = Boolean(deployment?.spec.rollout);
  const [rollout, problem] = useData(() => (has ? get(path("rollouts", name)) : Promise.resolve(null)), [name, deployment?.revision, has], EVERY_MS);
  if (!has) return html`<${Empty} title="No rollout">Deploy a version with the strategy canary, shadow or manual to replace the active one gradually.<//>`;
  if (problem) return html`<${ErrorBox} problem=${problem} />`;
  if (!rollout) return html`<p class="muted">Loading…</p>`;
  const running = ["running", "paused"].includes(rollout.phase);
  const act = (kind) => () => ask({ kind: "rollout", model: name, verb: kind, version: rollout.new.version });
  return html`<div class="grid">
    <p class=${`banner ${rollout.phase === "aborted" ? "bad" : ""}`}>${rollout.message}</p>
    <div class="card">
      <h2>${rollout.strategy}: version ${rollout.old.version} → ${rollout.new.version}</h2>
      <svg class="bar" viewBox="0 0 100 10" preserveAspectRatio="none" role="img" aria-label=${`version ${rollout.new.version} answers ${(rollout.weight * 100).toFixed(1)} percent`}>
        <rect width="100" height="10" class="seg-other" /><rect width=${rollout.weight * 100} height="10" class="seg-resident" />
      </svg>
      <dl class="fields above">
        <${Field} label="Phase">${rollout.phase}${rollout.ready || !running ? "" : ", waits until both versions are proved"}<//>
        <${Field} label="Step">${rollout.step} of ${rollout.steps}<//>
        <${Field} label="Share of the new version">${(rollout.weight * 100).toPrecision(3)} %<//>
        <${Field} label="Began">${date(rollout.began_at)}<//>
        ${running && rollout.step_ends_at && html`<${Field} label="Step ends at the earliest">in ${distance(rollout.step_ends_at)}<//>`}
        ${rollout.compared > 0 && html`<${Field} label="Compared answers">${rollout.compared}, ${rollout.differing} differ<//>`}
      </dl>
      ${running &&
      may("deploy") &&
      html`<div class="buttons above">
        <button class="primary" onClick=${act("promote")}>Promote</button>
        ${rollout.phase === "paused" ? html`<button onClick=${act("resume")}>Resume</button>` : html`<button onClick=${act("pause")}>Pause</button>`}
        <button class="danger" onClick=${act("abort")}>Abort</button>
      </div>`}
    </div>
    <div class="card">
      <h2>Measured</h2>
      <${Scroll} label="Measured">
        <table class="table">
          <thead><tr><th>Version</th><th class="right">Requests</th><th class="right">Failures</th><th class="right">p50</th><th class="right">p99</th></tr></thead>
          <tbody>
            ${[rollout.old, rollout.new].map(
              (one) => html`<tr key=${one.version}>
                <td class="num">${one.version}</td>
                <td class="right">${one.requests}</td>
                <td class="right">${one.failures}</td>
                <td class="right">${seconds(one.p50_seconds)}</td>
                <td class="right">${seconds(one.p99_seconds)}</td>
              </tr>`,
            )}
          </tbody>
        </table>
      <//>
      ${rollout.tests.length > 0 && html`<h2 class="above">Evidence</h2>`}
      <ul class="plain-list evidence">${rollout.tests.map((test) => html`<${Evidence} key=${test.signal} test=${test} />`)}</ul>
    </div>
  </div>`;
}
