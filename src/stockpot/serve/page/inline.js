/**
 * The inside of a markdown block: emphasis, code, links, formulas, citations, as DOM nodes. A flat row of parts is read once, marks
 * are paired by stacks, and nodes are built at the end: linear, and never deeper than a page can bear.
 */

import { maths } from "./maths.js";

/** How deep nodes may lie in each other. */
export const DEEPEST = 12;

const SPECIAL = /[\\`*_~[\]!<$h\n]/g;
const TARGET =
  /\(\s{0,9}<?([^\s<>()]{0,2000}(?:\([^\s<>()]{0,200}\)[^\s<>()]{0,2000}){0,4})>?(?:\s{1,9}"[^"]{0,300}")?\s{0,9}\)/y;
const BARE = /https?:\/\/[^\s<>"'`\])]{1,2000}/y;
const ANGLED = /<(https?:\/\/[^\s<>]{1,2000}|[\w.+-]{1,64}@[\w.-]{1,200})>/y;
const DOLLARS = /\$(?![\s$])([^$\n]{1,400}?)(?<![\s\\])\$(?!\d)/y;
const CITED = /\[(\d{1,2})\](?!\()/y;
const SAFE = /^(?:https?:\/\/|mailto:)/i;
const KINDS = { "*1": "em", "*2": "strong", _1: "em", _2: "strong", "~2": "del" };

/** Turn the text of one block into nodes: first a flat row of parts, then pairs of marks that enclose some of them. */
export function inline(text, into, about) {
  /** @type {Array<{text?: string, node?: Node, mark?: string, opens?: string, closes?: boolean, href?: string}>} */
  const parts = [];
  const ticks = tickRuns(text),
    open = { "*": [], _: [], "~": [] },
    brackets = [];
  let at = 0;
  const say = (upTo) => {
    if (upTo > at) parts.push({ text: text.slice(at, upTo) });
  };
  SPECIAL.lastIndex = 0;
  for (let found; (found = SPECIAL.exec(text));) {
    const here = found.index,
      sign = found[0];
    let end = here;
    if (sign === "\\") {
      const next = text[here + 1];
      if (next === "(") {
        const close = here + text.slice(here, here + 400).indexOf("\\)");
        if (close > here) {
          say(here);
          parts.push({ node: inlineMaths(text.slice(here + 2, close)) });
          end = close + 2;
        }
      } else if (next && /[!-/:-@[-`{-~]/.test(next)) {
        say(here);
        parts.push({ text: next });
        end = here + 2;
      }
    } else if (sign === "\n") {
      say(here);
      parts.push({ node: document.createElement("br") });
      end = here + 1;
    } else if (sign === "`") {
      const length = runLength(text, here, "`"),
        close = ticks.next(length, here + length);
      say(here);
      if (close >= 0) {
        const made = document.createElement("code");
        made.textContent = unpadded(text.slice(here + length, close).replace(/\n/g, " "));
        parts.push({ node: made });
        end = close + length;
      } else {
        parts.push({ text: "`".repeat(length) });
        end = here + length;
      }
    } else if (sign === "*" || sign === "_" || sign === "~") {
      say(here);
      end = here + runLength(text, here, sign);
      marks(text, here, end, parts, open);
    } else if (sign === "[" || (sign === "!" && text[here + 1] === "[")) {
      CITED.lastIndex = here;
      const cited = about.sources && sign === "[" && CITED.exec(text);
      say(here);
      if (cited && +cited[1] >= 1 && +cited[1] <= about.sources) {
        parts.push({ node: citation(+cited[1], about) });
        end = CITED.lastIndex;
      } else {
        end = here + (sign === "!" ? 2 : 1);
        brackets.push(parts.length);
        parts.push({ text: text.slice(here, end) });
      }
    } else if (sign === "]") {
      TARGET.lastIndex = here + 1;
      const from = brackets.pop(),
        target = from !== undefined && text[here + 1] === "(" && TARGET.exec(text);
      say(here);
      if (target && SAFE.test(target[1])) {
        const isImage = parts[from].text === "![";
        parts[from] = { opens: "a", href: target[1] };
        if (isImage) parts[from].label = "image: ";
        parts.push({ closes: true });
        for (const stack of Object.values(open)) while (stack.length && stack.at(-1) > from) stack.pop();
        brackets.length = 0;
        end = TARGET.lastIndex;
      } else {
        parts.push({ text: "]" });
        end = here + 1;
      }
    } else if (sign === "<") {
      ANGLED.lastIndex = here;
      const found = ANGLED.exec(text);
      if (found) {
        say(here);
        parts.push({ node: anchor(found[1].includes("://") ? found[1] : `mailto:${found[1]}`, found[1]) });
        end = ANGLED.lastIndex;
      }
    } else if (sign === "$") {
      DOLLARS.lastIndex = here;
      const found = DOLLARS.exec(text);
      if (found) {
        say(here);
        parts.push({ node: inlineMaths(found[1]) });
        end = DOLLARS.lastIndex;
      }
    } else if (sign === "h" && !brackets.length && !/\w/.test(text[here - 1] || "")) {
      BARE.lastIndex = here;
      const found = BARE.exec(text);
      if (found) {
        const url = found[0].replace(/[.,;:!?]+$/, "");
        say(here);
        parts.push({ node: anchor(url, url) });
        end = here + url.length;
      }
    }
    if (end > here) at = SPECIAL.lastIndex = end;
  }
  say(text.length);
  assemble(parts, into);
}

/** Match a run of marks with an earlier one, or leave it open. */
function marks(text, here, end, parts, open) {
  const sign = text[here],
    before = text[here - 1] || " ",
    after = text[end] || " ";
  const left = !/\s/.test(after) && (!/[\p{P}\p{S}]/u.test(after) || /[\s\p{P}\p{S}]/u.test(before));
  const right = !/\s/.test(before) && (!/[\p{P}\p{S}]/u.test(before) || /[\s\p{P}\p{S}]/u.test(after));
  const isWord = sign === "_" && /\w/.test(before) && /\w/.test(after);
  let count = end - here;
  const stack = open[sign];
  while (right && !isWord && count && stack.length) {
    const from = stack.at(-1),
      opener = parts[from];
    const size = Math.min(2, count, opener.text.length);
    const tag = KINDS[`${sign}${sign === "~" ? 2 : size}`];
    if (sign === "~" && (count < 2 || opener.text.length < 2)) break;
    opener.text = opener.text.slice(size);
    (opener.wraps ||= []).push(tag);
    parts.push({ closes: true });
    count -= size;
    if (!opener.text.length) stack.pop();
    for (const other of Object.values(open)) if (other !== stack) while (other.length && other.at(-1) > from) other.pop();
  }
  if (!count) return;
  if (left && !isWord && count <= 3) stack.push(parts.length);
  parts.push({ text: sign.repeat(count) });
}

/** Build nodes from the row of parts; pairs that nest too deep are left out, their content stays. */
function assemble(parts, into) {
  const stack = [into];
  let tooDeep = 0;
  const enter = (node) => {
    if (stack.length > DEEPEST) {
      tooDeep += 1;
      return;
    }
    stack.at(-1).append(node);
    stack.push(node);
  };
  for (const part of parts) {
    if (part.closes) {
      if (tooDeep) tooDeep -= 1;
      else if (stack.length > 1) stack.pop();
      continue;
    }
    if (part.text) stack.at(-1).append(part.text);
    if (part.node) stack.at(-1).append(part.node);
    if (part.opens) {
      enter(anchor(part.href, part.label || ""));
    }
    for (const tag of (part.wraps || []).slice().reverse()) enter(document.createElement(tag));
  }
}

function anchor(href, text) {
  const made = document.createElement("a");
  made.href = href;
  made.target = "_blank";
  made.rel = "noopener noreferrer nofollow";
  made.append(text);
  return made;
}

function citation(number, about) {
  const made = document.createElement("button");
  made.type = "button";
  made.className = "cite";
  made.textContent = String(number);
  made.setAttribute("aria-label", `Passage ${number}`);
  made.addEventListener("click", () => about.cite?.(number));
  return made;
}

function inlineMaths(text) {
  const made = document.createElement("span");
  made.className = "maths";
  made.textContent = maths(text);
  return made;
}

const unpadded = (text) => (text.startsWith(" ") && text.endsWith(" ") && text.trim() ? text.slice(1, -1) : text);

const runLength = (text, at, sign) => {
  let end = at;
  while (text[end] === sign) end += 1;
  return end - at;
};

/** Know where runs of backticks stand, by their lengths, so that each is looked for once. */
function tickRuns(text) {
  const places = new Map(),
    looked = new Map();
  for (const found of text.matchAll(/`+/g)) {
    const length = found[0].length;
    if (!places.has(length)) places.set(length, []);
    places.get(length).push(found.index);
  }
  return {
    next(length, from) {
      const all = places.get(length) || [];
      let index = looked.get(length) || 0;
      while (index < all.length && all[index] < from) index += 1;
      looked.set(length, index);
      return index < all.length ? all[index] : -1;
    },
  };
}
