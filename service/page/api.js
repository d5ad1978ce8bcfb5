// Talks to the service by its public routes alone: addresses, keys, refusals, event streams.

export const root = new URL("../", import.meta.url);

const KEY = "onestep-key";
const UNREACHABLE = "unreachable";

/** Why a request brought nothing. `slug` is the end of the problem document's type. */
export class Problem extends Error {
  constructor(slug, { status = 0, title = "", detail = "", errors = [], retryAfter = null } = {}) {
    super(detail || title || slug);
    Object.assign(this, { slug, status, title, detail, errors, retryAfter });
  }

  /** Whether the same request may succeed a little later. */
  get passes() {
    if (this.slug === "engine-lost") return false; // it killed the engine each time, or that is gone for good
    if (this.slug === "quota-exceeded" && this.retryAfter === null) return false; // more than is ever allowed
    return [429, 502, 503, 504].includes(this.status) || this.slug === UNREACHABLE;
  }
}

export const key = {
  get: () => sessionStorage.getItem(KEY),
  set: (value) => (value ? sessionStorage.setItem(KEY, value) : sessionStorage.removeItem(KEY)),
};

export function problemOf(document, status, retryAfter = null) {
  const slug = String(document.type ?? "").split("/").pop() || `status-${status}`;
  return new Problem(slug, { ...document, status, retryAfter });
}

async function refusal(response) {
  const after = Number(response.headers.get("Retry-After"));
  let document = {};
  try {
    document = await response.json();
  } catch {
    // A proxy's own page; its status says enough.
  }
  return problemOf(document, response.status, after > 0 ? after : null);
}

/** A good answer, or a Problem; an AbortError when `signal` says so. */
export async function ask(path, { json, form, accept, signal, method } = {}) {
  const headers = {};
  if (accept) headers.Accept = accept;
  if (json) headers["Content-Type"] = "application/json";
  if (key.get()) headers.Authorization = `Bearer ${key.get()}`;
  const body = json ? JSON.stringify(json) : form;
  let response;
  try {
    response = await fetch(new URL(path, root), { method: method ?? (body ? "POST" : "GET"), headers, body, signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(UNREACHABLE);
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

async function* lines(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n");
    rest = parts.pop();
    yield* parts;
  }
}

/** The events of a stream as [name, data]. Its `error` event, and a stream that breaks off, throw a Problem. */
export async function* stream(path, options) {
  const response = await ask(path, { ...options, accept: "text/event-stream" });
  let name = "", ended = false;
  try {
    for await (const line of lines(response)) {
      if (line.startsWith("event: ")) name = line.slice(7);
      if (!line.startsWith("data: ")) continue;
      const data = JSON.parse(line.slice(6));
      if (name === "error") throw problemOf(data, data.status);
      ended = name === "done";
      yield [name, data];
    }
  } catch (error) {
    if (error instanceof Problem || error.name === "AbortError") throw error;
    throw new Problem(UNREACHABLE);
  }
  if (!ended) throw new Problem(UNREACHABLE);
}

/** Address of one picture, relative to the service. */
export function pictureUrl(model, label, seed, steps) {
  return `v1/images/${encodeURIComponent(model)}/${encodeURIComponent(label)}/${seed}.png?steps=${steps}`;
}

/** `Server-Timing` as milliseconds by name. */
export function serverTiming(response) {
  const found = {};
  for (const part of (response.headers.get("Server-Timing") ?? "").split(",")) {
    const [, name, value] = /^\s*(\w+);dur=([\d.]+)/.exec(part) ?? [];
    if (name) found[name] = Number(value);
  }
  return found;
}

/** Values by series name of the service's metrics, or null when they are kept elsewhere. */
export async function metrics() {
  const text = await (await ask("metrics", { accept: "text/plain" })).text();
  const found = new Map();
  for (const line of text.split("\n")) {
    const [, name, value] = /^(onestep_\w+)(?:\{[^}]*\})? (\S+)$/.exec(line) ?? [];
    if (name && !name.endsWith("_bucket")) found.set(name, (found.get(name) ?? 0) + Number(value));
  }
  return found;
}
