// What is told about the last request: how it went, how long it took, and how to make it again.

import { $, el } from "./dom.js";
import { snippet } from "./snippets.js";

const shown = new Map(); // by tab: {request, times, status}
let tab = "", linked = null, links = []; // the request whose files have links, and where these lead

const milliseconds = (value) => (value == null ? "–" : value < 10 ? `${value.toFixed(1)} ms` : value < 10_000 ? `${Math.round(value)} ms` : `${(value / 1000).toFixed(1)} s`);

function draw() {
  const { request, times = {}, status = "" } = shown.get(tab) ?? {};
  for (const node of $("timings").querySelectorAll("dd")) node.textContent = milliseconds(times[node.dataset.time]);
  $("snippet").textContent = request ? snippet(request, $("language").value) : "Nothing on screen yet.";
  $("copy").disabled = !request;
  if (request !== linked) link(request);
  $("status").textContent = status;
}

function link(request) {
  links.forEach(URL.revokeObjectURL);
  const files = Object.entries(request?.files ?? {});
  [linked, links] = [request, files.map(([, blob]) => URL.createObjectURL(blob))];
  $("files").replaceChildren(...files.map(([name], i) =>
    el("a", { href: links[i], download: `${name}.png`, textContent: `Save ${name}.png` })));
}

export function openTab(name) {
  tab = name;
  draw();
}

/** Keeps `news` of a tab: any of `request`, `times` (milliseconds by name) and `status`. */
export function report(name, news) {
  shown.set(name, { ...shown.get(name), ...news });
  if (name === tab) draw();
}

/** The status of the open tab. */
export const tell = (status) => report(tab, { status });

/** `timings` of an answer as the page names them. */
export const timesOf = (timings, began) => ({
  queue: timings.queue_ms,
  inference: timings.inference_ms,
  total: timings.total_ms,
  browser: performance.now() - began,
});

export function startReport() {
  $("language").addEventListener("change", draw);
  $("copy").addEventListener("click", async () => {
    const button = $("copy");
    try {
      await navigator.clipboard.writeText($("snippet").textContent);
      button.textContent = "Copied";
    } catch {
      // Plain HTTP from elsewhere has no clipboard: the text is selected, to be copied by hand.
      getSelection().selectAllChildren($("snippet"));
      button.textContent = "Selected";
    }
    setTimeout(() => (button.textContent = "Copy"), 2000);
  });
}
