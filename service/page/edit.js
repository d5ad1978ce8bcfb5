// Edits of a picture: one of the person's own (opened, dropped, pasted) or one made here.

import { Problem, ask, pictureUrl } from "./api.js";
import { draw, hasPicture, maskBlob, maskIsEmpty, pictureBlob, setMask, setPicture, startCanvas } from "./canvas.js";
import { streamInto } from "./create.js";
import { $, Frame, dataUrl, el, loadImage } from "./dom.js";
import { report } from "./report.js";
import { common, label, model, randomSeed, seed, steps } from "./settings.js";
import { notice, run, stop } from "./task.js";

const PREVIEWS = 8;

// `few` steps to begin with and at `most`; every step of the grid where there is nothing. In more than a few a model is apt to
// repaint what was hair with more and more background.
const KINDS = {
  inpaint: { button: "Repaint", hint: "Paint over what shall be made anew; everything else stays as it is.", before: "Your picture and the mask", few: 6 },
  colorize: { button: "Colour", hint: "The brightness of your picture stays, its colours are made.", before: "Your picture in grey" },
  "super-resolution": { button: "Enlarge", hint: "The mean of every block stays, its detail is made.", before: "Your picture in blocks" },
  stroke: { button: "Redraw", hint: "Your picture is buried in noise, and found again as the model would draw it.", before: "Your picture", few: 4, most: 8 },
};

const kind = () => $("edit-kind").value;
let after = null;

export async function usePicture(src, slug) {
  try {
    setPicture(await loadImage(src));
  } catch {
    notice("This file is not a picture that can be opened here. Try a PNG, JPEG or WebP.");
    return false;
  }
  if (slug && [...$("class").options].some(({ value }) => value === slug)) $("class").value = slug;
  after.clear();
  $("after-caption").textContent = "After";
  return true;
}

async function openFile(file) {
  if (!file) return false;
  const src = URL.createObjectURL(file);
  const opened = await usePicture(src);
  URL.revokeObjectURL(src);
  if (opened) stop(); // of a sample that is on its way, or an edit of what was here before
  return opened;
}

/** Makes a picture to edit: of the chosen class, and of a seed of its own. */
async function sample(number, signal) {
  const response = await ask(pictureUrl(model().id, label(), number, 2), { signal });
  const index = Number(response.headers.get("X-Class-Label") ?? NaN);
  const src = URL.createObjectURL(await response.blob());
  await usePicture(src, model().classes.find((one) => one.index === index)?.slug);
  URL.revokeObjectURL(src);
}

export function showKind() {
  const all = Number($("steps").dataset.grid), { few = all, most = all } = KINDS[kind()];
  $("steps").max = most;
  $("steps").value = few;
  $("steps-value").value = $("steps").value;
  for (const node of document.querySelectorAll("[data-edit]")) node.hidden = node.dataset.edit !== kind();
  $("mask-tools").hidden = kind() !== "inpaint";
  $("edit-hint").textContent = KINDS[kind()].hint;
  $("before-caption").textContent = KINDS[kind()].before;
  $("before").classList.toggle("painting", kind() === "inpaint");
  edit.label = KINDS[kind()].button;
  $("go").textContent = edit.label;
  showBefore();
}

function showBefore() {
  draw(kind(), Math.round(model().image_size / Number($("factor").value || 1)));
}

function startDrop() {
  // The whole page, because a browser leaves it for a file that is dropped beside the place meant for it.
  const over = (is) => document.documentElement.classList.toggle("over", is);
  document.addEventListener("dragover", (event) => {
    if (!event.dataTransfer.types.includes("Files")) return;
    event.preventDefault();
    over(true);
  });
  document.addEventListener("dragleave", (event) => event.relatedTarget || over(false));
  document.addEventListener("drop", async (event) => {
    over(false);
    const [file] = event.dataTransfer.files;
    if (!file) return;
    event.preventDefault();
    if (await openFile(file)) location.hash = "edit";
  });
  document.addEventListener("paste", (event) => {
    const file = [...event.clipboardData.files].find(({ type }) => type.startsWith("image/"));
    if (file && !$("panel-edit").hidden) openFile(file);
  });
}

export const edit = {
  label: "Repaint",

  start() {
    after = new Frame($("after"));
    startCanvas();
    startDrop();
    setMask("middle");
    $("edit-kind").addEventListener("change", () => {
      stop();
      showKind();
    });
    $("factor").addEventListener("change", showBefore);
    $("file").addEventListener("change", () => {
      openFile($("file").files[0]);
      $("file").value = "";
    });
    $("sample").addEventListener("click", () => run((signal) => sample(randomSeed(), signal)));
  },

  enter() {
    showKind();
    if (!hasPicture()) run((signal) => sample(seed(), signal));
  },

  async run(signal) {
    const chosen = kind(), taken = steps();
    if (!hasPicture()) await sample(seed(), signal);
    if (chosen === "inpaint" && maskIsEmpty()) {
      throw new Problem("empty-mask", { detail: "Paint over a part of the picture first." });
    }
    const body = { ...common(), seed: seed() };
    const all = Number($("steps").dataset.grid);
    if (taken !== all) body.num_inference_steps = taken;
    if (chosen === "stroke") body.strength = Number($("strength").value);
    if (chosen === "super-resolution") body.factor = Number($("factor").value);
    const files = { image: await pictureBlob() };
    if (chosen === "inpaint") files.mask = await maskBlob();
    const form = new FormData();
    for (const [name, blob] of Object.entries(files)) form.append(name, blob, `${name}.png`);
    form.append("request", JSON.stringify({ ...body, callback_steps: Math.ceil(taken / PREVIEWS) }));
    const request = { path: `v1/edits/${chosen}`, body, files };
    after.clear();
    $("after-caption").textContent = "After";
    await streamInto("edit", request, { form, signal }, [after], (entry) => {
      const src = dataUrl(entry.b64_json, entry.media_type);
      after.finish(src, `After, seed ${entry.seed}`);
      const save = el("a", { href: src, download: `${chosen}-${entry.seed}.png`, textContent: "Save" });
      const on = el("button", { type: "button", className: "link", textContent: "Edit further" });
      on.addEventListener("click", () => {
        stop();
        usePicture(src);
      });
      $("after-caption").replaceChildren(`After · seed ${entry.seed} `, save, " ", on);
    });
    report("edit", { status: `Done, with seed ${body.seed}.` });
  },
};
