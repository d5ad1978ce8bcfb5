// What the form says, and what the served models allow.

import { $, el } from "./dom.js";

export const models = new Map();

export const model = () => models.get($("model").value);
export const steps = () => Number($("steps").value);
export const seed = (id = "seed") => Number($(id).value);
export const randomSeed = () => crypto.getRandomValues(new Uint32Array(1))[0] % 1_000_000;

/** Slug of the chosen class, or "any". */
export const label = () => $("class").value || "any";

/** The fields that every request has; what is the default is left out. */
export function common() {
  const body = {};
  if (models.size > 1) body.model = model().id;
  if (label() !== "any") body.class_labels = label();
  return body;
}

/** Name of a class as people read it. */
export const spoken = (picture) => picture.class_name ?? (picture.class_label == null ? "picture" : `class ${picture.class_label}`);

/** The first field that holds no whole number in its range, told to the person; null when all do. */
export function firstInvalid() {
  for (const id of ["seed", "seed-to"]) {
    const field = $(id);
    if (field.offsetParent !== null && !field.checkValidity()) return field;
  }
  return null;
}

/** Fills the form for the chosen model. */
export function showModel() {
  const { class_conditional: conditional, classes, num_train_timesteps: grid, image_size: side } = model();
  $("class-field").hidden = !conditional;
  $("class").replaceChildren(
    el("option", { value: "any", textContent: "Any (the seed decides)" }),
    ...classes.map(({ name, slug }) => el("option", { value: slug, textContent: name })),
  );
  $("steps").dataset.grid = grid;
  const factors = [2, 4, 8, 16].filter((factor) => side % factor === 0 && side / factor > 1);
  $("factor").replaceChildren(
    ...factors.map((factor) => el("option", { value: factor, textContent: `${factor} times (from ${side / factor} pixels)` })),
  );
  if (factors.includes(4)) $("factor").value = 4;
  document.documentElement.classList.toggle("small-pictures", side <= 64);
}

/** Lists the served models in the form. */
export function showModels(list) {
  models.clear();
  for (const one of list) models.set(one.id, one);
  $("model").replaceChildren(...list.map(({ id }) => el("option", { value: id, textContent: id })));
  $("model-field").hidden = list.length < 2;
  showModel();
}

/** Slug of the class of one entry of an answer, undefined without one. */
export const slugOf = ({ class_label: index }) => model().classes.find((one) => one.index === index)?.slug;
