// From one seed to another.

import { $, Frame, dataUrl, el } from "./dom.js";
import { streamInto } from "./create.js";
import { report } from "./report.js";
import { common, seed, steps } from "./settings.js";

const FRAME = 110; // milliseconds

let large = null, sources = [], timer = 0;

function show(index) {
  if (!sources[index]) return;
  large.finish(sources[index], `Frame ${index + 1} of ${sources.length}`);
  $("morph-slider").value = index;
  $("morph-slider").setAttribute("aria-valuetext", `${index + 1} of ${sources.length}`);
  $("morph-caption").textContent = `Frame ${index + 1} of ${sources.length}`;
}

function play(is) {
  clearInterval(timer);
  $("morph-play").setAttribute("aria-pressed", String(is));
  $("morph-play").textContent = is ? "Pause" : "Play";
  if (!is) return;
  let index = Number($("morph-slider").value), way = index + 1 < sources.length ? 1 : -1;
  timer = setInterval(() => {
    if (index + way < 0 || index + way >= sources.length) way = -way;
    index += way;
    show(index);
  }, FRAME);
}

export const morph = {
  label: "Morph",

  start() {
    large = new Frame($("morph-picture"));
    $("morph-slider").addEventListener("input", () => {
      play(false);
      show(Number($("morph-slider").value));
    });
    $("morph-strip").addEventListener("click", (event) => {
      play(false);
      show([...$("morph-strip").children].indexOf(event.target.closest("li")));
    });
    $("morph-play").addEventListener("click", () => play($("morph-play").getAttribute("aria-pressed") !== "true"));
  },

  leave: () => play(false),

  async run(signal) {
    play(false);
    const frames = Number($("frames").value);
    const body = { ...common(), seed_from: seed(), seed_to: seed("seed-to"), frames, num_inference_steps: steps() };
    const strip = Array.from({ length: frames }, () => new Frame());
    sources = new Array(frames).fill(null);
    large.clear();
    $("morph-slider").max = frames - 1;
    $("morph-strip").replaceChildren(...strip.map((frame) => el("li", {}, frame.node)));
    const request = { path: "v1/interpolate", body };
    await streamInto("morph", request, { json: body, signal }, strip, (entry, index) => {
      sources[index] = dataUrl(entry.b64_json, entry.media_type);
      strip[index].finish(sources[index], `Frame ${index + 1}`);
      if (index === 0) show(0);
    });
    report("morph", { status: `${frames} pictures from seed ${body.seed_from} to seed ${body.seed_to}.` });
  },
};
