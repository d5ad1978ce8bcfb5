// Renders avatars into uint8 .npy shards: one file per style and split, [N, size, size, 3], with the
// attributes of every avatar beside it. The seed string of avatar i is "<split>:<style>:<i>", so splits never share one.
//
//   node render.mjs --out data/32 --size 32 --split train --count 4000 [--start 0]

import { closeSync, mkdirSync, openSync, renameSync, writeFileSync, writeSync } from "node:fs";
import { join } from "node:path";
import { parseArgs } from "node:util";

import * as collection from "@dicebear/collection";
import { createAvatar } from "@dicebear/core";
import { Resvg } from "@resvg/resvg-js";

export const STYLES = {
  "adventurer": collection.adventurer,
  "big-ears": collection.bigEars,
  "big-smile": collection.bigSmile,
  "croodles": collection.croodles,
  "lorelei": collection.lorelei,
  "micah": collection.micah,
  "open-peeps": collection.openPeeps,
  "personas": collection.personas,
  "pixel-art": collection.pixelArt,
  "thumbs": collection.thumbs,
};
export const BACKGROUNDS = ["b6e3f4", "c0aede", "d1d4f9", "ffd5dc", "ffdfbf"];

function npyHeader(shape) {
  const dictionary = `{'descr': '|u1', 'fortran_order': False, 'shape': (${shape.join(", ")}), }`;
  const padding = 64 - ((10 + dictionary.length + 1) % 64);
  const text = dictionary + " ".repeat(padding % 64) + "\n";
  const head = Buffer.from([0x93, 0x4e, 0x55, 0x4d, 0x50, 0x59, 1, 0, text.length & 255, text.length >> 8]);
  return Buffer.concat([head, Buffer.from(text, "latin1")]);
}

/** RGB bytes [size, size, 3] and the attributes of one avatar. */
function render(style, seed, size) {
  const avatar = createAvatar(style, { seed, backgroundColor: BACKGROUNDS, size });
  const image = new Resvg(avatar.toString(), { fitTo: { mode: "width", value: size }, font: { loadSystemFonts: false } }).render();
  const rgba = image.pixels; // opaque everywhere: the background covers the picture
  const rgb = Buffer.allocUnsafe(size * size * 3);
  for (let from = 0, to = 0; from < rgba.length; from += 4) {
    rgb[to++] = rgba[from];
    rgb[to++] = rgba[from + 1];
    rgb[to++] = rgba[from + 2];
  }
  return { rgb, extra: avatar.toJson().extra };
}

/** Columns of small codes: {name: {values: [...], codes: [...]}}; what is absent has the value "none". */
class Attributes {
  columns = new Map();
  rows = 0;

  add(extra) {
    for (const [name, raw] of Object.entries(extra)) {
      if (!this.columns.has(name)) this.columns.set(name, { values: ["none"], codes: new Array(this.rows).fill(0) });
      const column = this.columns.get(name);
      const value = raw === undefined || raw === null ? "none" : Array.isArray(raw) ? raw.join("+") : String(raw);
      let code = column.values.indexOf(value);
      if (code < 0) code = column.values.push(value) - 1;
      column.codes.push(code);
    }
    this.rows += 1;
    for (const column of this.columns.values()) if (column.codes.length < this.rows) column.codes.push(0);
  }
}

const { values: options } = parseArgs({
  options: {
    out: { type: "string" },
    size: { type: "string", default: "32" },
    split: { type: "string", default: "train" },
    count: { type: "string", default: "4000" },
    start: { type: "string", default: "0" },
  },
});
const [size, count, start] = [Number(options.size), Number(options.count), Number(options.start)];
if (!options.out || ![size, count, start].every(Number.isInteger)) throw new Error("usage: see the head of this file");
mkdirSync(options.out, { recursive: true });
for (const [name, style] of Object.entries(STYLES)) {
  const began = Date.now();
  const stem = join(options.out, `${options.split}-${name}-${String(start).padStart(7, "0")}`);
  const file = openSync(`${stem}.npy.partial`, "w");
  writeSync(file, npyHeader([count, size, size, 3]));
  const attributes = new Attributes();
  for (let i = start; i < start + count; i++) {
    const { rgb, extra } = render(style, `${options.split}:${name}:${i}`, size);
    writeSync(file, rgb);
    attributes.add(extra);
  }
  closeSync(file);
  writeFileSync(`${stem}.json`, JSON.stringify(Object.fromEntries(attributes.columns)));
  renameSync(`${stem}.npy.partial`, `${stem}.npy`); // a shard that exists is complete
  const seconds = (Date.now() - began) / 1000;
  console.log(`${options.split} ${name}: ${count} avatars of ${size} px in ${seconds.toFixed(1)} s`);
}
