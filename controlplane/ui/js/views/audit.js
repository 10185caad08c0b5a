// Who changed what, when and why: the commits in the store, newest first.
import { pages } from "../api.js";
import { Empty, ErrorBox, VirtualTable, useData } from "../components.js";
import { date } from "../format.js";
import { html, useState } from "../html.js";
import { link } from "../router.js";

const AT_MOST = 5000;
const PAGE = 1000;
const PERIODS = [
  ["24", "24 hours"],
  ["168", "7 days"],
  ["720", "30 days"],
];
const EVERY_MS = 15_000;

const COLUMNS = [
  { key: "at", label: "Time", cell: (one) => html`<time class="num muted" datetime=${one.at}>${date(one.at)}</time>` },
  { key: "actor", label: "Who", cell: (one) => html`<span title=${one.actor}>${one.actor}</span>` },
  {
    key: "what",
    label: "What",
    cell: (one) => (one.name ? html`<span class="muted">${one.kind}</span> <a class="name" href=${link("models", one.name)}>${one.name}</a>` : one.kind),
  },
  { key: "revision", label: "#", className: "right num", cell: (one) => one.revision },
  { key: "reason", label: "Reason", cell: (one) => html`<span class=${one.error ? "bad-text" : ""} title=${one.error || one.reason}>${one.error || one.reason}</span>` },
];

async function read(hours) {
  const since = new Date(Date.now() - hours * 3_600_000).toISOString();
  const found = [];
  for await (const items of pages(`/v1/audit?since=${encodeURIComponent(since)}`, PAGE, PAGE)) {
    found.push(...items);
    if (found.length >= AT_MOST) break;
  }
  return found.reverse();
}

export function Audit() {
  const [hours, setHours] = useState("24");
  const [text, setText] = useState("");
  const [records, problem] = useData(() => read(Number(hours)), [hours], EVERY_MS);
  const needle = text.trim().toLowerCase();
  const rows = (records ?? []).filter((one) => !needle || `${one.actor} ${one.kind} ${one.name} ${one.reason}`.toLowerCase().includes(needle));
  return html`<section class="view fill">
    <header class="view-head">
      <h1>Audit</h1>
      <input type="search" aria-label="Search the audit log" placeholder="Search" value=${text} onInput=${(event) => setText(event.target.value)} />
    </header>
    <div class="chips" role="group" aria-label="Period">
      ${PERIODS.map(([key, label]) => html`<button key=${key} aria-pressed=${hours === key} onClick=${() => setHours(key)}>${label}</button>`)}
    </div>
    <${ErrorBox} problem=${problem} />
    ${records?.length >= AT_MOST && html`<p class="warn">Only the first ${AT_MOST} changes of the period are shown; <code>tritonctl audit</code> has all.</p>`}
    <${VirtualTable}
      label="Changes"
      columns=${COLUMNS}
      rows=${rows}
      keyOf=${(one) => one.commit_id || `${one.kind}/${one.name}/${one.revision}`}
      template="170px minmax(90px, 180px) minmax(120px, 220px) 56px minmax(220px, 1fr)"
      empty=${html`<${Empty} title=${records ? "No changes" : "Loading…"}>${records ? "Nothing was changed in this period." : ""}<//>`}
    />
  </section>`;
}
