// The same seed after one, two and four steps.

import { pictureUrl } from "./api.js";
import { $, Frame, el } from "./dom.js";
import { getPicture } from "./geturl.js";
import { report } from "./report.js";
import { label, model, seed } from "./settings.js";

const STEPS = [1, 2, 4];
let sources = [];

export const compare = {
  label: "Compare",

  async run(signal) {
    const asked = seed();
    const urls = STEPS.map((steps) => pictureUrl(model().id, label(), asked, steps));
    const frames = STEPS.map(() => new Frame());
    const captions = STEPS.map((steps) => el("figcaption", { textContent: steps === 1 ? "1 step" : `${steps} steps` }));
    $("compare-tiles").replaceChildren(...frames.map((frame, i) => el("li", {}, el("figure", {}, frame.node, captions[i]))));
    report("compare", { request: { urls }, status: "Waiting…", times: {} });
    sources.forEach(URL.revokeObjectURL);
    sources = [];
    const found = await Promise.all(urls.map(async (url, i) => {
      const one = await getPicture(url, signal);
      sources.push(one.src);
      frames[i].finish(one.src, `Seed ${asked} after ${STEPS[i] === 1 ? "one step" : `${STEPS[i]} steps`}`);
      const told = one.cached ? "from your browser" : one.remembered ? "from the server's cache" : `${Math.round(one.times.inference ?? 0)} ms`;
      captions[i].append(" ", el("span", { textContent: told }));
      return one;
    }));
    report("compare", { times: found.at(-1).times, status: `Seed ${asked} after one, two and four steps.` });
  },
};
