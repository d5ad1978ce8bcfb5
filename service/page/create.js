// Pictures by POST, which sharpen as their steps stream in.

import { stream } from "./api.js";
import { $, Frame, dataUrl, el } from "./dom.js";
import { report, timesOf } from "./report.js";
import { common, seed, slugOf, spoken, steps } from "./settings.js";

/** Streams `request` into `frames`; `finished(entry, index)` is called for each picture. Returns the timings. */
export async function streamInto(tab, request, options, frames, finished) {
  const began = performance.now();
  let working = false;
  report(tab, { request, status: "Waiting…", times: {} });
  for await (const [name, data] of stream(request.path, options)) {
    if (name === "queued" && data.position > 0) report(tab, { status: `Waiting behind ${data.position} steps of others…` });
    if (name === "step") {
      frames[data.index]?.preview(data);
      if (!working) report(tab, { status: "Working…" }); // said once, not at every step
      working = true;
    }
    if (name === "image") finished(data, data.index);
    if (name === "done") {
      report(tab, { times: timesOf(data.timings, began) });
      return data.timings;
    }
  }
}

function tile(frame, onEdit) {
  const caption = el("figcaption", { textContent: "…" });
  const node = el("li", {}, el("figure", {}, frame.node, caption));
  const finish = (entry) => {
    const src = dataUrl(entry.b64_json, entry.media_type), name = spoken(entry);
    frame.finish(src, `${name}, seed ${entry.seed}`);
    const save = el("a", { href: src, download: `${name}-${entry.seed}.png`, textContent: "Save" });
    save.setAttribute("aria-label", `Save ${name}, seed ${entry.seed}`);
    const edit = el("button", { type: "button", className: "link", textContent: "Edit" });
    edit.setAttribute("aria-label", `Edit ${name}, seed ${entry.seed}`);
    edit.addEventListener("click", () => onEdit(src, slugOf(entry)));
    caption.replaceChildren(el("span", { textContent: `${name} · ${entry.seed}` }), " ", save, " ", edit);
  };
  return { node, finish };
}

export const create = (onEdit) => ({
  label: "Create",

  async run(signal) {
    const count = Number($("batch").value), taken = steps();
    const body = { ...common(), batch_size: count, seed: seed(), num_inference_steps: taken };
    const frames = Array.from({ length: count }, () => new Frame());
    const tiles = frames.map((frame) => tile(frame, onEdit));
    $("create-tiles").replaceChildren(...tiles.map(({ node }) => node));
    $("create-tiles").dataset.columns = Math.ceil(Math.sqrt(count));
    const request = { path: "v1/generate", body };
    await streamInto("create", request, { json: body, signal }, frames, (entry, index) => tiles[index].finish(entry));
    const seeds = count === 1 ? `seed ${body.seed}` : `seeds ${body.seed} to ${body.seed + count - 1}`;
    report("create", { status: `${count === 1 ? "One picture" : `${count} pictures`}, ${seeds}, ${taken === 1 ? "one step" : `${taken} steps`}.` });
  },
});
