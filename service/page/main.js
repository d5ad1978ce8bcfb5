// The page: fills the form, opens tabs, and hands the work of each to its own module.

import { Problem, ask, key } from "./api.js";
import { compare } from "./compare.js";
import { create } from "./create.js";
import { $ } from "./dom.js";
import { edit, usePicture } from "./edit.js";
import { startLive } from "./live.js";
import { morph } from "./morph.js";
import { openTab, startReport } from "./report.js";
import { firstInvalid, models, randomSeed, showModel, showModels } from "./settings.js";
import { seeds } from "./seeds.js";
import { askForKey, notice, run, startKeys, stop } from "./task.js";

const tabs = {
  create: create(async (src, slug) => {
    show("edit");
    stop();
    await usePicture(src, slug);
    $("before").focus();
  }),
  compare,
  seeds,
  edit,
  morph,
};
const started = new Set(); // tabs that have shown something
const STEPS = { create: 2, seeds: 1, morph: 2 };
let tab = "", live = false;

function start() {
  if (!models.size) return;
  const invalid = firstInvalid();
  if (invalid) {
    notice("A seed is a whole number from 0 to 9007199254740991.");
    invalid.setAttribute("aria-invalid", "true");
    invalid.focus();
    return;
  }
  started.add(tab);
  // On a phone the form stands below what it makes.
  if ($("stage").getBoundingClientRect().top < 0) $("stage").scrollIntoView();
  const { [tab]: work } = tabs;
  run((signal) => work.run(signal));
}

function show(name) {
  if (name === tab) return;
  stop();
  if (STEPS[tab]) STEPS[tab] = Number($("steps").value);
  tabs[tab]?.leave?.();
  tab = name;
  for (const button of $("tabs").children) {
    const chosen = button.dataset.tab === name;
    button.setAttribute("aria-selected", String(chosen));
    button.tabIndex = chosen ? 0 : -1;
    $(button.getAttribute("aria-controls")).hidden = !chosen;
  }
  for (const node of document.querySelectorAll("[data-for]")) node.hidden = !node.dataset.for.split(" ").includes(name);
  $("seed-label").textContent = name === "morph" ? "From seed" : "Seed";
  $("go").textContent = tabs[name].label;
  if (STEPS[name]) {
    $("steps").max = 8;
    $("steps").value = STEPS[name];
    $("steps-value").value = STEPS[name];
  }
  history.replaceState(null, "", `#${name}`);
  openTab(name);
  if (!models.size) return;
  if (tabs[name].enter) tabs[name].enter();
  else if (!started.has(name)) start();
}

function startTabs() {
  const names = Object.keys(tabs);
  $("tabs").addEventListener("click", (event) => event.target.dataset.tab && show(event.target.dataset.tab));
  $("tabs").addEventListener("keydown", (event) => {
    const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    const end = { Home: 0, End: names.length - 1 }[event.key];
    if (by === undefined && end === undefined) return;
    const next = names[end ?? (names.indexOf(tab) + by + names.length) % names.length];
    show(next);
    $(`tab-${next}`).focus();
    event.preventDefault();
  });
  window.addEventListener("hashchange", () => tabs[location.hash.slice(1)] && show(location.hash.slice(1)));
}

function startForm() {
  $("controls").addEventListener("submit", (event) => {
    event.preventDefault();
    start();
  });
  $("dice").addEventListener("click", () => {
    $("seed").value = randomSeed();
    start();
  });
  $("stop").addEventListener("click", () => {
    stop("Stopped.");
    $("go").focus();
  });
  for (const id of ["steps", "batch", "frames", "strength"]) {
    $(id).addEventListener("input", () => ($(`${id}-value`).value = $(id).value));
  }
  for (const id of ["seed", "seed-to"]) $(id).addEventListener("input", () => $(id).removeAttribute("aria-invalid"));
  $("model").addEventListener("change", () => {
    showModel();
    started.clear();
    if (tabs[tab].enter) tabs[tab].enter();
    else start();
  });
  for (const id of ["class", "steps"]) {
    $(id).addEventListener("change", () => tab === "seeds" && start());
  }
}

async function load(signal) {
  showModels((await (await ask("v1/models", { signal })).json()).data);
}

async function begin() {
  const { keys } = $("live").dataset;
  startReport();
  startTabs();
  startForm();
  startKeys(begun);
  for (const one of Object.values(tabs)) one.start?.();
  show(location.hash.slice(1) in tabs ? location.hash.slice(1) : "create");
  $("key-button").hidden = keys !== "yes";
  if (keys === "yes" && !key.get() && !(await askForKey())) {
    notice("Without a key this page can only be looked at.");
    return;
  }
  await begun();
}

async function begun() {
  await run(load);
  if (!models.size) return;
  if (!live && $("live").dataset.shown === "yes") startLive();
  live = true;
  if (tabs[tab].enter) tabs[tab].enter();
  else start();
}

begin().catch((error) => {
  if (!(error instanceof Problem)) throw error;
});
