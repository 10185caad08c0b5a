// What the page knows about the control plane, kept current by the event stream. Views read it with `useStore`.
import { get, pages, Problem } from "./api.js";
import { useEffect, useState } from "./html.js";

const EVENTS_KEPT = 2000;
const FIRST_PAGE = 100;
const PAGE = 1000;
const MODELS_MS = 30_000;
const ALL_MS = 300_000;
const SETTLE_MS = 120;

export const state = {
  session: null,
  info: null,
  deployments: new Map(),
  models: new Map(),
  servers: [],
  events: [],
  loaded: false,
  live: false,
  problem: null,
};

const listeners = new Set();
let scheduled = false;

/** Tell the views that the state has changed; they are drawn once per frame. */
export function changed() {
  if (scheduled) return;
  scheduled = true;
  const tell = () => {
    scheduled = false;
    for (const listener of [...listeners]) listener();
  };
  // A hidden tab gets no frames, but is to be current when it is shown.
  if (document.hidden) setTimeout(tell, 0);
  else requestAnimationFrame(tell);
}

export function useStore() {
  const [, redraw] = useState(0);
  useEffect(() => {
    const listener = () => redraw((count) => count + 1);
    listeners.add(listener);
    return () => listeners.delete(listener);
  }, []);
  return state;
}

/** Whether the key permits something. */
export function may(scope) {
  return Boolean(state.session?.scopes.includes(scope));
}

/** Whether the key is for all models, which views of whole servers need. */
export function wide() {
  return Boolean(state.session && state.session.models.length === 0);
}

let source = null;
let timer = null;
let retry = null;
let sweep = 0;
let read = 0;
let turn = 0;

export function start() {
  stop();
  loadAll();
  follow(turn);
  timer = setInterval(look, MODELS_MS);
}

/** Read what no event reports, while somebody looks: a publish is none. */
function look() {
  if (document.hidden) return;
  if (!state.live || performance.now() - read >= ALL_MS) loadAll();
  else quietly(() => loadModels(++sweep));
}

document.addEventListener("visibilitychange", () => timer && performance.now() - read >= MODELS_MS && look());

export function stop() {
  turn += 1;
  source?.close();
  source = null;
  clearInterval(timer);
  timer = null;
  clearTimeout(retry);
}

/** Do some reading in the background: a failure is shown at the top of the page. */
export async function quietly(work) {
  try {
    await work();
    if (state.problem) {
      state.problem = null;
      changed();
    }
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    if (error.status === 401) return;
    state.problem = error;
    changed();
  }
}

/** Read everything again: what events were lost while the connection was broken, and what no event reports. */
export function loadAll() {
  const mine = ++sweep;
  read = performance.now();
  return quietly(async () => {
    await Promise.all([loadDeployments(mine), loadModels(mine), loadServers()]);
    state.loaded = true;
    changed();
  });
}

async function loadDeployments(mine) {
  const seen = new Set();
  for await (const items of pages("/v1/deployments", FIRST_PAGE, PAGE)) {
    if (mine !== sweep) return;
    for (const item of items) {
      seen.add(item.model);
      keepNewest(item);
    }
    state.loaded = true;
    changed();
  }
  for (const name of [...state.deployments.keys()]) {
    if (!seen.has(name) && !recent.has(name)) state.deployments.delete(name);
  }
  recent.clear();
}

async function loadModels(mine) {
  const seen = new Map();
  for await (const items of pages("/v1/models", PAGE, PAGE)) {
    for (const item of items) seen.set(item.name, item);
  }
  if (mine !== sweep) return;
  state.models = seen;
  changed();
}

export async function loadServers() {
  state.servers = (await get("/v1/servers")).items;
  changed();
}

function keepNewest(deployment) {
  const known = state.deployments.get(deployment.model);
  if (!known || known.revision <= deployment.revision) state.deployments.set(deployment.model, deployment);
}

// Models whose deployment was read by themselves while a whole list was being read, which may not have it yet.
const recent = new Set();

/** Read one deployment. By a list with a filter, in which one that does not exist is no error. */
export async function loadDeployment(model) {
  await quietly(async () => {
    const [deployment] = (await get(`/v1/deployments?name=${encodeURIComponent(model)}`)).items;
    recent.add(model);
    if (deployment) keepNewest(deployment);
    else state.deployments.delete(model);
    changed();
  });
}

export async function loadModel(model) {
  await quietly(async () => {
    const [head] = (await get(`/v1/models?name=${encodeURIComponent(model)}`)).items;
    if (head) state.models.set(model, head);
    else state.models.delete(model);
    changed();
  });
}

const stale = new Set();
let settling = null;

function refreshLater(subject) {
  stale.add(subject);
  settling ??= setTimeout(() => {
    settling = null;
    const subjects = [...stale];
    stale.clear();
    if (subjects.length > 30) {
      loadAll();
      return;
    }
    const servers = new Set(state.servers.map((server) => server.name));
    for (const subject of subjects) {
      if (servers.has(subject)) quietly(loadServers);
      else if (subject) {
        loadDeployment(subject);
        loadModel(subject);
      }
    }
  }, SETTLE_MS);
}

const RECONNECT_MS = 1000;

/** Follow the events. Reconnected here rather than by the browser: after a restart the numbers begin again. */
async function follow(mineTurn) {
  let began;
  try {
    const info = await get("/v1/info");
    if (mineTurn !== turn) return; // stopped meanwhile
    if (state.info && state.info.started_at !== info.started_at) state.events = [];
    state.info = info;
    began = info.started_at;
    if (state.problem?.status === 0) state.problem = null;
  } catch (error) {
    if (error.status === 401 || mineTurn !== turn) return;
    state.problem = error;
    changed();
    retry = setTimeout(follow, RECONNECT_MS, mineTurn);
    return;
  }
  const mine = new EventSource(`/v1/events?follow=true&after=${state.events.at(-1)?.id ?? 0}`);
  source = mine;
  mine.addEventListener("open", () => {
    if (!state.live && state.loaded) loadAll();
    state.live = true;
    changed();
  });
  mine.addEventListener("event", (message) => {
    const event = JSON.parse(message.data);
    if (began !== state.info.started_at || event.id <= (state.events.at(-1)?.id ?? 0)) return;
    state.events.push(event);
    if (state.events.length > EVENTS_KEPT) state.events.splice(0, state.events.length - EVENTS_KEPT);
    if (state.loaded) refreshLater(event.subject);
    changed();
  });
  mine.addEventListener("error", () => {
    mine.close();
    if (mine !== source) return;
    state.live = false;
    changed();
    retry = setTimeout(follow, RECONNECT_MS, mineTurn);
  });
}
