// The frame of the page: session, navigation, and which view is shown.
import { get, remove, useToken, whenSignedOut } from "./api.js";
import { ActionDialog, close } from "./actions.js";
import { Empty, ErrorBox } from "./components.js";
import { html, render, useEffect, useState } from "./html.js";
import { link, useRoute } from "./router.js";
import { changed, may, start, state, stop, useStore, wide } from "./store.js";
import { Api } from "./views/api.js";
import { Audit } from "./views/audit.js";
import { Events } from "./views/events.js";
import { Fleet } from "./views/fleet.js";
import { Keys } from "./views/keys.js";
import { Model } from "./views/model.js";
import { Models } from "./views/models.js";
import { Publish } from "./views/publish.js";
import { SignIn } from "./views/signin.js";

const VIEWS = [
  ["models", "Models"],
  ["fleet", "Fleet"],
  ["events", "Events"],
  ["publish", "Publish"],
  ["audit", "Audit"],
  ["keys", "Keys"],
  ["api", "API"],
];

/** Whether the key permits what a view shows. */
function offered(view) {
  if (view === "publish") return may("deploy");
  if (view === "audit") return may("audit");
  if (view === "keys") return may("admin") && wide();
  return true;
}

const ICONS = {
  models: "M4 5h16v4H4zM4 11h16v4H4zM4 17h16v2H4z",
  fleet: "M4 4h16v6H4zM4 14h16v6H4zM7 7h2M7 17h2",
  events: "M3 12h4l3-8 4 16 3-8h4",
  publish: "M12 16V4M7 9l5-5 5 5M4 20h16",
  audit: "M6 3h12v18H6zM9 8h6M9 12h6M9 16h4",
  keys: "M14 10a4 4 0 1 0-3 3l7 7h3v-3l-2-2M8 8h1",
  api: "M8 7l-5 5 5 5M16 7l5 5-5 5",
};

function View({ route }) {
  const [name, ...rest] = route.parts;
  if (name === undefined || name === "models") {
    return rest.length ? html`<${Model} key=${rest[0]} name=${rest[0]} tab=${rest[1]} query=${route.query} />` : html`<${Models} />`;
  }
  if (name === "fleet") return html`<${Fleet} />`;
  if (name === "events") return html`<${Events} />`;
  if (name === "publish") return html`<${Publish} />`;
  if (name === "audit" && offered(name)) return html`<${Audit} />`;
  if (name === "keys" && offered(name)) return html`<${Keys} />`;
  if (name === "api") return html`<${Api} />`;
  return html`<section class="view"><${Empty} title="No such page"><a href=${link("models")}>All models</a><//></section>`;
}

const THEMES = ["auto", "light", "dark"];

function useTheme() {
  const [theme, setTheme] = useState(() => localStorage.getItem("theme") ?? "auto");
  useEffect(() => {
    if (theme === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    localStorage.setItem("theme", theme);
  }, [theme]);
  return [theme, () => setTheme(THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length])];
}

async function signOut() {
  await remove("/v1/session").catch(() => {});
  leave();
}

/** Forget what belongs to the session. */
function leave() {
  stop();
  close(); // a dialog of this session does not come back in the next one
  useToken("");
  Object.assign(state, { session: { signed_in: false, scopes: [], models: [] }, deployments: new Map(), models: new Map(), servers: [], events: [], loaded: false, live: false, info: null });
  changed();
}

function enter(session) {
  useToken(session.csrf_token);
  state.session = session;
  if (session.signed_in) start();
  changed();
}

function App() {
  const { session, live, problem, info } = useStore();
  const route = useRoute();
  const [theme, nextTheme] = useTheme();
  const [failure, setFailure] = useState(null);
  const code = route.parts[0] === "sign-in" ? route.parts[1] : "";
  useEffect(() => {
    whenSignedOut(leave);
    get("/v1/session").then(enter, setFailure);
    return stop;
  }, []);
  useEffect(() => {
    const [view, name] = route.parts;
    document.title = [name, VIEWS.find(([key]) => key === view)?.[1], "Triton control plane"].filter(Boolean).join(" · ");
    document.querySelector("main")?.focus?.({ preventScroll: true });
  }, [route.parts.join("/")]);
  if (failure) return html`<main class="signin"><${ErrorBox} problem=${failure} /></main>`;
  if (!session) return html`<main class="signin"><p class="muted">Loading…</p></main>`;
  if (!session.signed_in && route.parts[0] === "api") return html`<main id="content" tabindex="-1"><${Api} /></main>`; // public
  if (!session.signed_in) return html`<${SignIn} code=${code} onSession=${enter} />`;
  const current = route.parts[0] ?? "models";
  return html`<div class="frame">
    <a class="skip" href="#content" onClick=${(event) => (event.preventDefault(), document.getElementById("content").focus())}>Skip to the content</a>
    <aside class="side">
      <a class="brand" aria-label="Triton control plane" href=${link("models")}><img src="icon.svg" alt="" width="26" height="26" /><span>Triton control plane</span></a>
      <nav aria-label="Views">
        ${VIEWS.filter(([key]) => offered(key)).map(
          ([key, label]) => html`<a key=${key} href=${link(key)} aria-current=${current === key ? "page" : undefined}>
            <svg viewBox="0 0 24 24" aria-hidden="true"><path d=${ICONS[key]} /></svg><span>${label}</span>
          </a>`,
        )}
      </nav>
      <div class="side-foot">
        <p class=${live ? "live" : "live off"} role="status"><i aria-hidden="true"></i><span>${live ? "Live" : "Not connected"}</span></p>
        <button class="plain" onClick=${nextTheme}>Theme: ${theme}</button>
        ${session.required
          ? html`<p class="muted who" title=${`Scopes: ${session.scopes.join(", ")}`}>${session.name}</p>
              <button class="plain" onClick=${signOut}>Sign out</button>`
          : html`<p class="muted who">No API keys: everything is permitted</p>`}
        <p class="muted who">Version ${info?.version ?? ""}</p>
      </div>
    </aside>
    <main id="content" tabindex="-1">
      ${problem && html`<div class="topbar"><${ErrorBox} problem=${problem} /></div>`}
      <${View} route=${route} />
    </main>
    <${ActionDialog} />
  </div>`;
}

render(html`<${App} />`, document.getElementById("app"));
