/** Pictures that are sent with a message: made small enough, since models see some hundred pixels and a request holds a megabyte. */

import { h } from "./dom.js";

const SENT_AS_IT_IS = 100_000; // bytes
const SIDE = 768; // pixels

/** Whether a file is a picture that browsers and models read. */
export const isPicture = (file) => ["image/png", "image/jpeg", "image/webp", "image/gif"].includes(file.type);

/** A picture as it is sent. @param {File} file */
export async function asDataUrl(file) {
  if (file.size <= SENT_AS_IT_IS) return read(file);
  const drawn = await createImageBitmap(file).catch(() => {
    throw new Error(`${file.name} cannot be read as a picture.`);
  });
  const scale = Math.min(1, SIDE / Math.max(drawn.width, drawn.height));
  const canvas = h("canvas", { width: Math.max(1, drawn.width * scale), height: Math.max(1, drawn.height * scale) });
  const pen = canvas.getContext("2d");
  pen.fillStyle = "white"; // JPEG knows no transparency
  pen.fillRect(0, 0, canvas.width, canvas.height);
  pen.drawImage(drawn, 0, 0, canvas.width, canvas.height);
  return canvas.toDataURL("image/jpeg", 0.85);
}

const read = (file) =>
  new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
