// The picture to edit, and the mask that is painted over it by pointer or by keys.

import { $ } from "./dom.js";

const SIDE = 256; // of the canvas and the mask
const LARGEST = 1024; // side of the picture that is sent
const TINT = "#e11d48";

const before = $("before");
const view = before.getContext("2d");
const mask = new OffscreenCanvas(SIDE, SIDE);
const paint = mask.getContext("2d", { willReadFrequently: true });
const tint = new OffscreenCanvas(SIDE, SIDE);

let picture = null, kind = "inpaint", blocks = 8, last = null; // blocks: along a side, for enlarging
const cursor = { x: SIDE / 2, y: SIDE / 2, shown: false };

const contextOf = (canvas) => canvas.getContext("2d");

/** Cuts the middle square out of an image, on white, and keeps it as the picture to edit. */
export function setPicture(image) {
  const width = image.naturalWidth ?? image.width, height = image.naturalHeight ?? image.height;
  const cut = Math.min(width, height), side = Math.min(cut, LARGEST);
  picture = new OffscreenCanvas(side, side);
  const context = contextOf(picture);
  context.fillStyle = "#fff";
  context.fillRect(0, 0, side, side);
  context.imageSmoothingQuality = "high";
  context.drawImage(image, (width - cut) / 2, (height - cut) / 2, cut, cut, 0, 0, side, side);
  draw();
}

export const hasPicture = () => picture !== null;
export const pictureBlob = () => picture.convertToBlob({ type: "image/png" });

/** Black where the picture stays, white where it is painted anew. */
export function maskBlob() {
  const flat = new OffscreenCanvas(SIDE, SIDE), context = contextOf(flat);
  context.fillRect(0, 0, SIDE, SIDE);
  context.drawImage(mask, 0, 0);
  return flat.convertToBlob({ type: "image/png" });
}

export function maskIsEmpty() {
  return !paint.getImageData(0, 0, SIDE, SIDE).data.some((value, i) => i % 4 === 3 && value >= 128);
}

/** Shows the picture as the edit will know it: in grey, in blocks, or with the mask over it. */
export function draw(newKind = kind, newBlocks = blocks) {
  [kind, blocks] = [newKind, newBlocks];
  view.clearRect(0, 0, SIDE, SIDE);
  if (!picture) return;
  view.imageSmoothingEnabled = picture.width >= SIDE;
  view.filter = kind === "colorize" ? "grayscale(1)" : "none";
  if (kind === "super-resolution") {
    const small = new OffscreenCanvas(blocks, blocks);
    contextOf(small).imageSmoothingQuality = "high";
    contextOf(small).drawImage(picture, 0, 0, blocks, blocks);
    view.imageSmoothingEnabled = false;
    view.drawImage(small, 0, 0, SIDE, SIDE);
  } else {
    view.drawImage(picture, 0, 0, SIDE, SIDE);
  }
  view.filter = "none";
  if (kind === "inpaint") drawMask();
}

function drawMask() {
  const context = contextOf(tint);
  context.globalCompositeOperation = "copy";
  context.drawImage(mask, 0, 0);
  context.globalCompositeOperation = "source-in";
  context.fillStyle = TINT;
  context.fillRect(0, 0, SIDE, SIDE);
  view.globalAlpha = 0.6;
  view.drawImage(tint, 0, 0);
  view.globalAlpha = 1;
  if (cursor.shown) {
    for (const [width, style] of [[4, "#000"], [2, "#fff"]]) {
      view.lineWidth = width;
      view.strokeStyle = style;
      view.beginPath();
      view.arc(cursor.x, cursor.y, brush() / 2, 0, 2 * Math.PI);
      view.stroke();
    }
  }
}

const brush = () => Number($("brush").value);

function stroke(from, to, erase) {
  paint.globalCompositeOperation = erase ? "destination-out" : "source-over";
  paint.strokeStyle = "#fff";
  paint.lineCap = "round";
  paint.lineWidth = brush();
  paint.beginPath();
  paint.moveTo(from.x, from.y);
  paint.lineTo(to.x + 0.01, to.y);
  paint.stroke();
  draw();
}

const AREAS = { left: [0, 0, 0.5, 1], top: [0, 0, 1, 0.5], middle: [0.25, 0.25, 0.5, 0.5], none: [0, 0, 0, 0] };

/** Sets the mask to one of `AREAS`. */
export function setMask(name) {
  paint.globalCompositeOperation = "source-over";
  paint.clearRect(0, 0, SIDE, SIDE);
  paint.fillStyle = "#fff";
  paint.fillRect(...AREAS[name].map((part) => part * SIDE));
  draw();
}

const erasing = () => $("erase").getAttribute("aria-pressed") === "true";

function point(event) {
  const box = before.getBoundingClientRect();
  return { x: ((event.clientX - box.left) / box.width) * SIDE, y: ((event.clientY - box.top) / box.height) * SIDE };
}

function onKey(event) {
  const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  if (kind !== "inpaint") return;
  cursor.shown = true;
  if (moves[event.key]) {
    const [x, y] = moves[event.key], step = event.shiftKey ? 2 : brush() / 2;
    cursor.x = Math.min(SIDE, Math.max(0, cursor.x + x * step));
    cursor.y = Math.min(SIDE, Math.max(0, cursor.y + y * step));
    draw();
  } else if (event.key === " " || event.key === "Backspace") {
    stroke(cursor, cursor, event.key === "Backspace" || erasing());
  } else {
    return;
  }
  event.preventDefault();
}

export function startCanvas() {
  before.addEventListener("pointerdown", (event) => {
    if (kind !== "inpaint" || event.button !== 0) return;
    before.setPointerCapture(event.pointerId);
    cursor.shown = false;
    last = point(event);
    stroke(last, last, erasing());
  });
  before.addEventListener("pointermove", (event) => {
    if (!last) return;
    const here = point(event);
    stroke(last, here, erasing());
    last = here;
  });
  for (const name of ["pointerup", "pointercancel"]) before.addEventListener(name, () => (last = null));
  before.addEventListener("keydown", onKey);
  for (const name of ["focus", "blur"]) {
    before.addEventListener(name, () => {
      cursor.shown = name === "focus" && before.matches(":focus-visible");
      draw();
    });
  }
  $("erase").addEventListener("click", () => $("erase").setAttribute("aria-pressed", String(!erasing())));
  for (const button of document.querySelectorAll("[data-mask]")) {
    button.addEventListener("click", () => setMask(button.dataset.mask));
  }
}
