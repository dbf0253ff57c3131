// Pictures on their way into a question: from files, the clipboard, a drop or the camera.

import { Refused } from "./agent.js";

const TAKEN = ["image/jpeg", "image/png", "image/webp"]; // what the agent reads; it is sent as it is
const MAX_PIXELS = 4096 * 4096;
const MAX_BYTES = 32 * 1024 * 1024;
const SIDE = 2048; // of a picture that has to be redrawn

// A picture of a file: {name, url}, a `data:` URL. Throws Refused.
export async function pictureOf(file) {
  const name = file.name || "the picture";
  const bitmap = await createImageBitmap(file).catch(() => {
    throw new Refused(`${name} is not a picture that this browser can read; use JPEG, PNG or WebP`);
  });
  const fits = TAKEN.includes(file.type) && file.size <= MAX_BYTES && bitmap.width * bitmap.height <= MAX_PIXELS;
  const blob = fits ? file : await redraw(bitmap, bitmap.width, bitmap.height);
  bitmap.close();
  return { name, url: await dataUrl(blob) };
}

// What a source (bitmap or video) shows now, as a JPEG of at most SIDE a side.
export function redraw(source, width, height) {
  const scale = Math.min(1, SIDE / Math.max(width, height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(width * scale));
  canvas.height = Math.max(1, Math.round(height * scale));
  canvas.getContext("2d").drawImage(source, 0, 0, canvas.width, canvas.height);
  return new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.92));
}

// The files of a paste or a drop.
export function filesOf(transfer) {
  return [...(transfer?.files ?? [])];
}

function dataUrl(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new Refused("the picture could not be read; choose it again"));
    reader.readAsDataURL(blob);
  });
}
