// What changed, as it happens.
import { Empty, VirtualTable } from "../components.js";
import { clock, date } from "../format.js";
import { html, useState } from "../html.js";
import { link } from "../router.js";
import { useStore } from "../store.js";

function columns(state) {
  return [
    { key: "at", label: "Time", cell: (event) => html`<time class="num muted" datetime=${event.at} title=${date(event.at)}>${clock(event.at)}</time>` },
    { key: "reason", label: "Reason", cell: (event) => html`<span class=${event.type === "Warning" ? "bad-text" : ""}>${event.reason}</span>` },
    {
      key: "subject",
      label: "Subject",
      cell: (event) =>
        state.models.has(event.subject) || state.deployments.has(event.subject)
          ? html`<a class="name" href=${link("models", event.subject)}>${event.subject}</a>`
          : html`<span class="name">${event.subject}</span>`,
    },
    { key: "message", label: "Message", cell: (event) => html`<span title=${event.message}>${event.message}</span>` },
  ];
}

/** The newest events first; of one subject if it is given. */
export function EventTable({ subject, type, text }) {
  const state = useStore();
  const needle = (text ?? "").trim().toLowerCase();
  const rows = state.events
    .filter((event) => !subject || event.subject === subject)
    .filter((event) => !type || event.type === type)
    .filter((event) => !needle || `${event.subject} ${event.reason} ${event.message}`.toLowerCase().includes(needle))
    .reverse();
  return html`<${VirtualTable}
    label="Events"
    columns=${columns(state)}
    rows=${rows}
    keyOf=${(event) => event.id}
    template="84px minmax(130px, 190px) minmax(90px, 200px) minmax(240px, 1fr)"
    empty=${html`<${Empty} title="No events">${subject ? "Nothing happened to it since this instance started." : "Nothing happened since this instance started."}<//>`}
  />`;
}

export function Events() {
  const [text, setText] = useState("");
  const [type, setType] = useState("");
  return html`<section class="view fill">
    <header class="view-head">
      <h1>Events</h1>
      <input type="search" aria-label="Search events" placeholder="Search" value=${text} onInput=${(event) => setText(event.target.value)} />
    </header>
    <div class="chips" role="group" aria-label="Type">
      ${[["", "All"], ["Warning", "Warnings"], ["Normal", "Normal"]].map(
        ([key, label]) => html`<button key=${key} aria-pressed=${type === key} onClick=${() => setType(key)}>${label}</button>`,
      )}
    </div>
    <${EventTable} type=${type} text=${text} />
  </section>`;
}
