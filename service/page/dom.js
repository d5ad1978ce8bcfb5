// Small helpers on the document.

export const $ = (id) => document.getElementById(id);

/** A new element; `children` are nodes or text. */
export function el(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

export const dataUrl = (base64, type = "image/png") => `data:${type};base64,${base64}`;

/** A frame that shows nothing yet, then previews, then the picture. */
export class Frame {
  constructor(node = el("div", { className: "picture" })) {
    this.node = node;
    this.clear();
  }

  clear() {
    this.image = null;
    this.node.replaceChildren();
    this.node.classList.remove("done", "preview");
  }

  #show(src, alt) {
    if (!this.image) {
      this.image = el("img", { draggable: false });
      this.node.replaceChildren(this.image);
    }
    this.image.alt = alt;
    this.image.src = src;
  }

  preview({ b64_json, step, num_inference_steps }) {
    this.node.classList.add("preview");
    this.#show(dataUrl(b64_json), `Step ${step} of ${num_inference_steps}`);
  }

  finish(src, alt) {
    this.node.classList.remove("preview");
    this.node.classList.add("done");
    this.#show(src, alt);
  }
}

/** Loads a picture's address into something that a canvas can draw. */
export async function loadImage(src) {
  const image = new Image();
  image.src = src;
  await image.decode();
  return image;
}
