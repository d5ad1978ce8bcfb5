// A slider over seeds. One request is under way at a time; of the seeds passed meanwhile only the last is asked for.

import { pictureUrl } from "./api.js";
import { $, Frame } from "./dom.js";
import { getPicture } from "./geturl.js";
import { report } from "./report.js";
import { label, model, steps } from "./settings.js";
import { run } from "./task.js";

let frame = null, source = null, running = null; // running: the signal of what is under way

async function show(signal) {
  for (let asked = null; asked !== $("seeds-slider").value; ) {
    asked = $("seeds-slider").value;
    const url = pictureUrl(model().id, label(), asked, steps());
    const one = await getPicture(url, signal);
    frame.finish(one.src, `Seed ${asked}`);
    if (source) URL.revokeObjectURL(source);
    source = one.src;
    const from = one.cached ? "from your browser's cache" : one.remembered ? "from the server's cache" : "from the server";
    $("seeds-caption").textContent = `Seed ${asked}, ${from}, ${one.times.browser.toFixed(one.times.browser < 10 ? 1 : 0)} ms`;
    report("seeds", { request: { urls: [url] }, times: one.times });
  }
}

export const seeds = {
  label: "Show",

  start() {
    frame = new Frame($("seeds-picture"));
    $("seeds-slider").addEventListener("input", () => {
      $("seeds-value").value = $("seeds-slider").value;
      if (!running) run((signal) => this.run(signal));
    });
    $("seeds-value").value = $("seeds-slider").value;
  },

  async run(signal) {
    running = signal;
    try {
      await show(signal);
    } finally {
      if (running === signal) running = null; // else another has begun
    }
  },
};
