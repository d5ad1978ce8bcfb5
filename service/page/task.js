// Runs one piece of work at a time: stops it, tells what went wrong, and tries again where that can help.

import { Problem, key } from "./api.js";
import { $, el } from "./dom.js";
import { tell } from "./report.js";

const GIVE_UP = 5 * 60_000; // milliseconds after which nothing more is tried without being asked
const WAIT = [1, 2, 4, 8, 15]; // seconds before another attempt, where the server does not say

let current = null;

const SENTENCES = {
  unreachable: () => (navigator.onLine ? "The server cannot be reached." : "You are offline."),
  "quota-exceeded": () => "You have as many pictures under way as one person may have here.",
  overloaded: () => "The server is busy: others are waiting for pictures, too.",
  "not-ready": () => "The server is still getting ready.",
  draining: () => "The server is being stopped or replaced.",
  "engine-lost": () => "The server broke down and gave this up. Something else may work.",
  "deadline-exceeded": () => "That took longer than the server may take.",
  "body-too-large": () => "This picture is too large for the server. Try a smaller one.",
  unauthorized: () => "The server wants a valid key.",
};

function sentence(problem) {
  if (SENTENCES[problem.slug]) return SENTENCES[problem.slug]();
  if (problem.errors.length) {
    return problem.errors.map(({ loc, message }) => `${loc.filter((part) => part !== "body").join(" ")}: ${message}`).join(" ");
  }
  if (problem.status >= 500) return "Something went wrong on the server. It has been noted there.";
  return problem.message;
}

export function clearNotice() {
  $("notice").hidden = true;
  $("notice").replaceChildren();
}

export function notice(text, ...buttons) {
  $("notice").replaceChildren(el("p", { textContent: text }), ...buttons);
  $("notice").hidden = false;
}

/** Asks for a key; whether one was given. */
export function askForKey() {
  const dialog = $("key-dialog");
  $("key").value = "";
  $("key-button").hidden = false;
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "given"), { once: true });
    dialog.returnValue = "";
  });
}

export function startKeys(after) {
  const dialog = $("key-dialog");
  $("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    key.set($("key").value.trim());
    dialog.close("given");
  });
  $("key-cancel").addEventListener("click", () => dialog.close(""));
  $("key-button").addEventListener("click", async () => (await askForKey()) && after());
}

/** Waits that many seconds, telling them; sooner when the person or the network says so. */
function patience(problem, seconds, signal) {
  return new Promise((resolve, reject) => {
    const now = el("button", { type: "button", textContent: "Try now" });
    const count = el("span");
    const text = el("p", {}, `${sentence(problem)} `, count);
    const end = Date.now() + seconds * 1000;
    const finish = (settle, value) => {
      clearInterval(timer);
      window.removeEventListener("online", go);
      signal.removeEventListener("abort", leave);
      settle(value);
    };
    const go = () => finish(resolve);
    const leave = () => finish(reject, signal.reason);
    const tick = () => {
      const left = Math.ceil((end - Date.now()) / 1000);
      if (left <= 0) return go();
      count.textContent = `Trying again in ${left} s.`;
    };
    // Only the sentence is announced; a countdown read aloud every second would be a nuisance.
    count.setAttribute("aria-hidden", "true");
    $("notice").replaceChildren(text, now);
    $("notice").hidden = false;
    const timer = setInterval(tick, 250);
    now.addEventListener("click", go);
    window.addEventListener("online", go);
    signal.addEventListener("abort", leave);
    tick();
  });
}

function busy(is) {
  $("stop").hidden = !is;
  $("stage").setAttribute("aria-busy", String(is));
}

/** Ends what is under way, and says so on its tab. */
export function stop(status = "") {
  if (current) tell(status);
  current?.abort();
  current = null;
  busy(false);
  clearNotice();
}

async function attempts(work, signal) {
  const began = Date.now();
  for (let attempt = 1; ; attempt++) {
    try {
      await work(signal);
      clearNotice();
      return;
    } catch (problem) {
      if (!(problem instanceof Problem)) throw problem;
      signal.throwIfAborted();
      if (problem.status === 401) {
        key.set("");
        if (await askForKey()) continue;
      }
      if (!problem.passes || Date.now() - began > GIVE_UP) {
        const again = el("button", { type: "button", textContent: "Try again" });
        again.addEventListener("click", () => run(work));
        tell("");
        notice(sentence(problem), ...(problem.passes || problem.status === 401 ? [again] : []));
        return;
      }
      await patience(problem, problem.retryAfter ?? WAIT[Math.min(attempt, WAIT.length) - 1], signal);
      clearNotice();
    }
  }
}

/** Does `work(signal)`; what was under way before is stopped. */
export async function run(work) {
  stop();
  const controller = (current = new AbortController());
  busy(true);
  try {
    await attempts(work, controller.signal);
  } catch (error) {
    if (error.name !== "AbortError") throw error;
  } finally {
    if (current === controller) {
      current = null;
      busy(false);
    }
  }
}
