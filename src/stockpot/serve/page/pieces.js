/** How tokens and shares are shown. */

import { h } from "./dom.js";

/** Spell a token so that blanks and line ends are seen. */
export const told = (text) => text.replace(/\n/g, "↵").replace(/\t/g, "⇥").replace(/^ | $/g, "·") || "∅";

/** A share as a bar; the figure stands beside it. */
export function meter(value) {
  const made = h("span.meter", { "aria-hidden": "true" }, h("span"));
  made.firstChild.style.width = `${Math.max(1, 100 * value)}%`;
  return made;
}
