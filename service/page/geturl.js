// Pictures by GET: the browser's own cache makes them instant the second time.

import { ask, serverTiming } from "./api.js";

// Entries of others that are under way must stay, so they are forgotten when there is no room for more.
performance.addEventListener("resourcetimingbufferfull", () => performance.clearResourceTimings());

/** One picture: {src, times (milliseconds), cached (here), remembered (by the server)}. The caller revokes `src`. */
export async function getPicture(url, signal) {
  const began = performance.now();
  const response = await ask(url, { signal });
  const src = URL.createObjectURL(await response.blob());
  const entry = performance.getEntriesByName(response.url).at(-1);
  const cached = entry?.transferSize === 0;
  const browser = performance.now() - began;
  const remembered = /\bcache;desc=hit\b/.test(response.headers.get("Server-Timing"));
  return { src, cached, remembered, times: cached ? { browser } : { ...serverTiming(response), browser } };
}
