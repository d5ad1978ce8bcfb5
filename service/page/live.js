// The server's throughput, from its public metrics, for as long as somebody looks at the page.

import { metrics } from "./api.js";
import { $ } from "./dom.js";

const EVERY = 3000; // milliseconds

const number = (value) => (value >= 10 ? value.toFixed(0) : value.toFixed(1));
const plural = (value, one, many) => `${value} ${value === 1 ? one : many}`;

export function startLive() {
  let before = null, timer = 0;

  async function look() {
    clearTimeout(timer);
    if (document.hidden) {
      before = null;
      return;
    }
    try {
      const found = await metrics();
      const now = { at: performance.now(), pictures: found.get("onestep_images_total") ?? 0, steps: found.get("onestep_image_steps_total") ?? 0 };
      const waiting = found.get("onestep_num_images_waiting") ?? 0;
      if (before) {
        const seconds = (now.at - before.at) / 1000;
        const [pictures, steps] = [(now.pictures - before.pictures) / seconds, (now.steps - before.steps) / seconds];
        $("live").textContent = `${number(Math.max(0, pictures))} pictures/s · ${number(Math.max(0, steps))} steps/s · ${plural(waiting, "picture", "pictures")} waiting`;
      } else {
        $("live").textContent = plural(waiting, "picture waiting", "pictures waiting");
      }
      before = now;
      $("live").classList.remove("away");
    } catch (error) {
      before = null;
      $("live").textContent = error.slug === "unreachable" ? "No connection" : "";
      $("live").classList.add("away");
    }
    timer = setTimeout(look, EVERY);
  }

  document.addEventListener("visibilitychange", look);
  window.addEventListener("online", look);
  look();
}
