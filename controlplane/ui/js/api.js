// The REST API. The session's cookie is sent by the browser; changes also need the token that only this page knows.

/** An error of the API, as RFC 9457 describes it. */
export class Problem extends Error {
  constructor(body, status) {
    super(body.detail || body.title || `the control plane answered with status ${status}`);
    this.code = body.code || "";
    this.title = body.title || "Error";
    this.status = status;
    this.details = body.details || {};
  }
}

let csrfToken = "";
let onSignedOut = () => {};

export function useToken(token) {
  csrfToken = token;
}

export const csrf = () => csrfToken;

/** Call `handler` when a request is refused because there is no valid session. */
export function whenSignedOut(handler) {
  onSignedOut = handler;
}

/** Return the parts as a path of the API, each part encoded. */
export function path(...parts) {
  return "/v1/" + parts.map((part) => encodeURIComponent(part)).join("/");
}

/**
 * Send a request and return its JSON. `body`: an object is sent as JSON, a Blob as it is.
 * Throws Problem, also if the control plane cannot be reached (status 0).
 */
export async function request(method, url, body, { signal, headers } = {}) {
  const raw = body instanceof Blob || body instanceof ArrayBuffer;
  const sent = { Accept: "application/json", "X-Actor": "page", ...headers };
  if (method !== "GET") sent["X-CSRF-Token"] = csrfToken;
  if (body !== undefined && !raw) sent["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(url, {
      method,
      headers: sent,
      body: body === undefined ? undefined : raw ? body : JSON.stringify(body),
      credentials: "same-origin",
      cache: "no-store",
      signal,
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem({ code: "unreachable", title: "Not reachable", detail: "The control plane does not answer." }, 0);
  }
  const text = await response.text();
  let parsed = null;
  try {
    parsed = text ? JSON.parse(text) : null;
  } catch {
    if (response.ok) throw new Problem({ title: "Unusable answer", detail: "The answer is not JSON." }, response.status);
  }
  if (!response.ok) {
    if (response.status === 401 && !url.startsWith("/v1/session")) onSignedOut();
    throw new Problem(parsed || {}, response.status);
  }
  return parsed;
}

export const get = (url, options) => request("GET", url, undefined, options);
export const post = (url, body, options) => request("POST", url, body, options);
export const put = (url, body, options) => request("PUT", url, body, options);
export const remove = (url, options) => request("DELETE", url, undefined, options);

/** Yield the pages of a list. */
export async function* pages(url, first, limit) {
  let cursor = null;
  let size = first;
  do {
    const query = new URLSearchParams({ limit: String(size) });
    if (cursor) query.set("cursor", cursor);
    const page = await get(`${url}${url.includes("?") ? "&" : "?"}${query}`);
    yield page.items;
    cursor = page.next_cursor;
    size = limit;
  } while (cursor);
}
