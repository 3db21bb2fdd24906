/** Small helpers that build DOM nodes. Text only ever becomes text: nothing here takes markup. */

/**
 * Make an element.
 * @param {string} tag name, with classes after dots: "p.soft"
 * @param {Record<string, any>} [props] attributes; `on…` are listeners, `hidden`, `value` … are properties
 * @param {...(Node | string | number | null | undefined | false | Array<any>)} children
 * @returns {HTMLElement}
 */
export function h(tag, props = {}, ...children) {
  const [name, ...classes] = tag.split(".");
  const made = document.createElement(name);
  if (classes.length) made.className = classes.join(" ");
  for (const [key, value] of Object.entries(props)) {
    if (value === undefined || value === null || value === false) continue;
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (key in made && !key.startsWith("aria") && key !== "list" && key !== "form") made[key] = value;
    else made.setAttribute(key, value === true ? "" : String(value));
  }
  made.append(
    ...children
      .flat(Infinity)
      .filter((one) => one !== null && one !== undefined && one !== false)
      .map((one) => (one instanceof Node ? one : String(one))),
  );
  return made;
}

const SVG = "http://www.w3.org/2000/svg";

/** Make an SVG element. */
export function svg(tag, attributes = {}, ...children) {
  const made = document.createElementNS(SVG, tag);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, String(value));
  made.append(...children);
  return made;
}

const PATHS = {
  chat: "M4 5h16v11H9l-5 4z",
  inside: "M11 4a7 7 0 1 0 0 14 7 7 0 0 0 0-14zM16 16l5 5M8.5 11h5M11 8.5v5",
  compare: "M4 5h7v14H4zM13 5h7v14h-7z",
  train: "M4 19V5M4 19h16M7 15l4-5 3 3 5-7",
  report: "M6 3h9l4 4v14H6zM9 11h7M9 15h7M9 7h3",
  plus: "M12 5v14M5 12h14",
  send: "M12 19V5M6 11l6-6 6 6",
  stop: "M7 7h10v10H7z",
  up: "M7 20V10l4-7c2 0 2.5 1.5 2 3l-1 4h7l-2 10zM4 10h3v10H4z",
  down: "M17 4v10l-4 7c-2 0-2.5-1.5-2-3l1-4H5L7 4zM20 14h-3V4h3z",
  again: "M5 12a7 7 0 1 1 2.5 5.4M5 18v-4h4",
  edit: "M4 20l1-4L16 5l3 3L8 19z",
  copy: "M8 8h11v12H8zM5 16V4h11",
  bin: "M5 7h14M9 7V4h6v3M7 7l1 13h8l1-13",
  tune: "M4 7h10M18 7h2M16 5v4M4 17h2M10 17h10M8 15v4",
  file: "M7 3h7l4 4v14H7zM14 3v4h4",
  sun: "M12 8a4 4 0 1 0 0 8 4 4 0 0 0 0-8M12 3v1M12 20v1M3 12h1M20 12h1M6 6l.5.5M17.5 17.5l.5.5M18 6l-.5.5M6.5 17.5L6 18",
  menu: "M4 7h16M4 12h16M4 17h16",
  left: "M14 6l-6 6 6 6",
  right: "M10 6l6 6-6 6",
  close: "M6 6l12 12M18 6L6 18",
  save: "M12 4v11M7 10l5 5 5-5M5 20h14",
  image: "M4 5h16v14H4zM4 16l5-5 4 4 3-3 4 4M15 9h.01",
};

/** Make an icon; it says nothing to a screen reader. */
export function icon(name) {
  return svg("svg", { viewBox: "0 0 24 24", class: "icon", "aria-hidden": "true" }, svg("path", { d: PATHS[name] }));
}

/** Make a button with an icon, a label for those who do not see it, and perhaps a word. */
export function button(label, { name, word, onclick, kind = "", ...props }) {
  return h(
    `button.${["btn", kind, word ? "" : "bare"].filter(Boolean).join(".")}`,
    { type: "button", title: label, "aria-label": word ? undefined : label, onclick, ...props },
    name && icon(name),
    word,
  );
}

/** Make a labelled field. */
export function field(label, control, hint) {
  const id = control.id || `f${Math.random().toString(36).slice(2)}`;
  control.id = id;
  return h("div.field", {}, h("label", { htmlFor: id }, label), control, hint && h("small", {}, hint));
}

/** Make a list to choose from. */
export function select(options, chosen, onchange) {
  const made = h(
    "select",
    { onchange: () => onchange && onchange(made.value) },
    options.map((one) => {
      const [value, text] = Array.isArray(one) ? one : [one, one];
      return h("option", { value, selected: value === chosen }, text);
    }),
  );
  return made;
}

/** Tell something in passing, to eyes and to screen readers. */
export function toast(text, kind = "") {
  const told = h(`div.toast${kind && `.${kind}`}`, {}, String(text));
  document.getElementById("toasts").append(told);
  setTimeout(() => told.remove(), kind === "bad" ? 9000 : 4000);
}

/** Run something and tell what went wrong. */
export async function tried(work) {
  try {
    return await work();
  } catch (error) {
    if (error.name !== "AbortError") toast(error.message || error, "bad");
    return undefined;
  }
}

/** Write a share as people do. */
export const percent = (value, digits = 0) =>
  value === null || value === undefined
    ? "–"
    : value === 0
      ? "0 %"
      : value < 0.0001
        ? "< 0.01 %"
        : `${(100 * value).toFixed(value < 0.01 ? 2 : value < 0.1 ? 1 : digits)} %`;

/** Let somebody save text as a file. */
export function download(name, text, type = "text/plain") {
  const url = URL.createObjectURL(new Blob([text], { type }));
  const link = h("a", { href: url, download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}

/** Copy text. Only pages of this machine or over TLS have a clipboard; elsewhere what is selected can be copied. */
export async function copyText(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const held = h("textarea.hush", { value: text });
  (document.querySelector("dialog[open]") || document.body).append(held);
  held.select();
  const isDone = document.execCommand("copy");
  held.remove();
  if (!isDone) throw new Error("This browser did not let the page copy.");
}

/** Make a random id. */
export const newId = () =>
  Array.from(crypto.getRandomValues(new Uint8Array(16)), (one) => one.toString(16).padStart(2, "0")).join("");

/** Whether keys belong to a text field now. */
export const isTyping = () => /^(INPUT|TEXTAREA|SELECT)$/.test(document.activeElement?.tagName || "");
