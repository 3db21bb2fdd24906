/**
 * Markdown as DOM nodes. What a model or a document writes is hostile until it is here: no markup is ever parsed as HTML, links go
 * to http, https and mailto only, images are not loaded, and nesting ends at a depth that a page can bear. Every step is linear in
 * the length of the text.
 */

import { highlight } from "./highlight.js";
import { maths } from "./maths.js";

const DEEPEST = 12;
// Patterns here never have two open-ended parts that fit the same signs: those take quadratic time on hostile text.
const FENCE = /^ {0,3}(?:(`{3,})[^`]*|(~{3,}).*)$/;
const HEADING = /^ {0,3}(#{1,6})(?:[ \t](.*))?$/;
const RULE = /^ {0,3}([-*_])(?:[ \t]*\1){2,}[ \t]*$/;
const QUOTE = /^ {0,3}>[ \t]?/;
const ITEM = /^( {0,3})([-*+]|\d{1,9}[.)])(?:[ \t]+|$)/;
const DELIMITERS = /^ {0,3}\|?[ \t]*:?-+:?[ \t]*(?:\|[ \t]*:?-+:?[ \t]*)*\|?[ \t]*$/;

/**
 * Turn text into nodes.
 * @param {string} text
 * @param {{sources?: number, cite?: (number: number) => void}} [about] how many passages may be cited, and what a citation does
 * @returns {DocumentFragment}
 */
export function render(text, about = {}) {
  const made = document.createDocumentFragment();
  blocks(text.replace(/\r\n?/g, "\n").split("\n"), made, 0, about);
  return made;
}

function element(tag, into, className) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  into.append(made);
  return made;
}

// --- blocks ---

/** @param {string[]} lines */
function blocks(lines, into, depth, about) {
  let at = 0;
  while (at < lines.length) {
    const line = lines[at];
    if (!line.trim()) at += 1;
    else if (FENCE.test(line)) at = fence(lines, at, into);
    else if (/^ {0,3}(\$\$|\\\[)/.test(line)) at = formula(lines, at, into);
    else if (HEADING.test(line)) {
      const [, signs, words = ""] = HEADING.exec(line);
      inline(words.trim().replace(/ #{1,6}$/, ""), element(`h${Math.min(6, signs.length + 1)}`, into), about);
      at += 1;
    } else if (RULE.test(line)) {
      element("hr", into);
      at += 1;
    } else if (depth < DEEPEST && QUOTE.test(line)) at = quote(lines, at, into, depth, about);
    else if (depth < DEEPEST && ITEM.test(line)) at = list(lines, at, into, depth, about);
    else if (line.includes("|") && at + 1 < lines.length && lines[at + 1].length < 1000 && DELIMITERS.test(lines[at + 1])) at = table(lines, at, into, about);
    else at = paragraph(lines, at, into, depth, about);
  }
}

function fence(lines, at, into) {
  const found = FENCE.exec(lines[at]), marks = found[1] || found[2];
  const language = lines[at].trim().slice(marks.length).trim().split(/[\s{]/, 1)[0].slice(0, 30);
  const body = [];
  const end = new RegExp(`^ {0,3}${marks[0] === "`" ? "`" : "~"}{${marks.length},}[ \\t]*$`);
  let next = at + 1;
  while (next < lines.length && !end.test(lines[next])) body.push(lines[next++]);
  code(into, body.join("\n"), language.toLowerCase());
  return next + 1;
}

function code(into, text, language) {
  const figure = element("figure", into, "code");
  const bar = element("figcaption", figure);
  bar.append(language || "text");
  const copy = element("button", bar, "btn small");
  copy.type = "button";
  copy.textContent = "Copy";
  copy.addEventListener("click", async () => {
    await navigator.clipboard.writeText(text).catch(() => {});
    copy.textContent = "Copied";
    setTimeout(() => { copy.textContent = "Copy"; }, 1500);
  });
  const pre = element("pre", figure);
  pre.tabIndex = 0;
  highlight(element("code", pre), text, language);
}

function formula(lines, at, into) {
  const open = lines[at].includes("$$") ? "$$" : "\\[", close = open === "$$" ? "$$" : "\\]";
  const first = lines[at].slice(lines[at].indexOf(open) + 2);
  const body = [];
  let next = at, rest = first;
  for (;;) {
    const end = rest.indexOf(close);
    if (end >= 0) { body.push(rest.slice(0, end)); break; }
    body.push(rest);
    next += 1;
    if (next >= lines.length || next - at > 60) break;
    rest = lines[next];
  }
  const made = element("div", into, "maths block");
  made.textContent = maths(body.join("\n").trim());
  return next + 1;
}

function quote(lines, at, into, depth, about) {
  const inner = [];
  let next = at;
  while (next < lines.length && (QUOTE.test(lines[next]) || (lines[next].trim() && inner.at(-1)?.trim() && !starts(lines[next])))) inner.push(lines[next++].replace(QUOTE, ""));
  blocks(inner, element("blockquote", into), depth + 1, about);
  return next;
}

const starts = (line) => FENCE.test(line) || HEADING.test(line) || RULE.test(line) || QUOTE.test(line) || ITEM.test(line);

function list(lines, at, into, depth, about) {
  const [, , mark] = ITEM.exec(lines[at]);
  const isOrdered = /\d/.test(mark), kind = mark.at(-1);
  const made = element(isOrdered ? "ol" : "ul", into);
  if (isOrdered && parseInt(mark, 10) !== 1) made.start = parseInt(mark, 10);
  let next = at;
  while (next < lines.length) {
    const found = ITEM.exec(lines[next]);
    if (!found || RULE.test(lines[next]) || found[2].at(-1) !== kind || /\d/.test(found[2]) !== isOrdered) break;
    const width = Math.min(found[0].length, found[1].length + found[2].length + 4) || 2;
    const inner = [lines[next].slice(found[0].length)];
    next += 1;
    while (next < lines.length) {
      const line = lines[next], indent = line.length - line.trimStart().length;
      if (!line.trim()) {
        if (next + 1 >= lines.length || lines[next + 1].length - lines[next + 1].trimStart().length < Math.min(width, 2) || !lines[next + 1].trim()) break;
        inner.push("");
      } else if (indent >= Math.min(width, 2)) inner.push(line.slice(Math.min(indent, width)));
      else if (starts(line) || !inner.at(-1)?.trim()) break;
      else inner.push(line);
      next += 1;
    }
    const item = element("li", made);
    const task = /^\[([ xX])\][ \t]+/.exec(inner[0]);
    if (task) {
      const box = element("input", item);
      Object.assign(box, { type: "checkbox", disabled: true, checked: task[1] !== " ", ariaLabel: "task" });
      inner[0] = inner[0].slice(task[0].length);
    }
    tight(inner, item, depth + 1, about);
    while (next < lines.length && !lines[next].trim() && next + 1 < lines.length && ITEM.test(lines[next + 1])) next += 1;
  }
  return next;
}

/** Put an item's lines in without a paragraph around a single one. */
function tight(lines, item, depth, about) {
  let plain = 0;
  while (plain < lines.length && lines[plain].trim() && !(depth < DEEPEST && starts(lines[plain]))) plain += 1;
  if (plain) inline(lines.slice(0, plain).join("\n"), item, about);
  blocks(lines.slice(plain), item, depth, about);
}

function table(lines, at, into, about) {
  const aligned = cells(lines[at + 1]).map((cell) => cell.startsWith(":") && cell.endsWith(":") ? "center" : cell.endsWith(":") ? "right" : "");
  const frame = element("div", into, "scroll");
  frame.tabIndex = 0;
  frame.setAttribute("role", "region");
  frame.setAttribute("aria-label", "table");
  const made = element("table", frame);
  row(lines[at], element("tr", element("thead", made)), "th", aligned, about);
  const body = element("tbody", made);
  let next = at + 2;
  while (next < lines.length && lines[next].trim() && lines[next].includes("|")) row(lines[next++], element("tr", body), "td", aligned, about);
  return next;
}

const cells = (line) => line.trim().replace(/^\|/, "").replace(/(^|[^\\])\|$/, "$1").split(/(?<!\\)\|/).slice(0, 60).map((cell) => cell.trim().replace(/\\\|/g, "|"));

function row(line, into, tag, aligned, about) {
  const found = cells(line);
  aligned.slice(0, 60).forEach((side, index) => inline(found[index] || "", element(tag, into, side), about));
}

function paragraph(lines, at, into, depth, about) {
  let next = at + 1;
  while (next < lines.length && lines[next].trim() && !(starts(lines[next]) && (depth < DEEPEST || !(QUOTE.test(lines[next]) || ITEM.test(lines[next])))) && !/^ {0,3}(\$\$|\\\[)/.test(lines[next])) next += 1;
  inline(lines.slice(at, next).join("\n"), element("p", into), about);
  return next;
}

// --- inside a block ---

const SPECIAL = /[\\`*_~[\]!<$h\n]/g;
const TARGET = /\(\s{0,9}<?([^\s<>()]{0,2000}(?:\([^\s<>()]{0,200}\)[^\s<>()]{0,2000}){0,4})>?(?:\s{1,9}"[^"]{0,300}")?\s{0,9}\)/y;
const BARE = /https?:\/\/[^\s<>"'`\])]{1,2000}/y;
const ANGLED = /<(https?:\/\/[^\s<>]{1,2000}|[\w.+-]{1,64}@[\w.-]{1,200})>/y;
const DOLLARS = /\$(?![\s$])([^$\n]{1,400}?)(?<![\s\\])\$(?!\d)/y;
const CITED = /\[(\d{1,2})\](?!\()/y;
const SAFE = /^(?:https?:\/\/|mailto:)/i;
const KINDS = { "*1": "em", "*2": "strong", _1: "em", _2: "strong", "~2": "del" };

/** Turn the text of one block into nodes: first a flat row of parts, then pairs of marks that enclose some of them. */
function inline(text, into, about) {
  /** @type {Array<{text?: string, node?: Node, mark?: string, opens?: string, closes?: boolean, href?: string}>} */
  const parts = [];
  const ticks = tickRuns(text), open = { "*": [], _: [], "~": [] }, brackets = [];
  let at = 0;
  const say = (upTo) => { if (upTo > at) parts.push({ text: text.slice(at, upTo) }); };
  SPECIAL.lastIndex = 0;
  for (let found; (found = SPECIAL.exec(text));) {
    const here = found.index, sign = found[0];
    let end = here;
    if (sign === "\\") {
      const next = text[here + 1];
      if (next === "(" ) {
        const close = here + text.slice(here, here + 400).indexOf("\\)");
        if (close > here) { say(here); parts.push({ node: inlineMaths(text.slice(here + 2, close)) }); end = close + 2; }
      } else if (next && /[!-/:-@[-`{-~]/.test(next)) { say(here); parts.push({ text: next }); end = here + 2; }
    } else if (sign === "\n") {
      say(here);
      parts.push({ node: document.createElement("br") });
      end = here + 1;
    } else if (sign === "`") {
      const length = runLength(text, here, "`"), close = ticks.next(length, here + length);
      say(here);
      if (close >= 0) {
        const made = document.createElement("code");
        made.textContent = unpadded(text.slice(here + length, close).replace(/\n/g, " "));
        parts.push({ node: made });
        end = close + length;
      } else { parts.push({ text: "`".repeat(length) }); end = here + length; }
    } else if (sign === "*" || sign === "_" || sign === "~") {
      say(here);
      end = here + runLength(text, here, sign);
      marks(text, here, end, parts, open);
    } else if (sign === "[" || (sign === "!" && text[here + 1] === "[")) {
      CITED.lastIndex = here;
      const cited = about.sources && sign === "[" && CITED.exec(text);
      say(here);
      if (cited && +cited[1] >= 1 && +cited[1] <= about.sources) { parts.push({ node: citation(+cited[1], about) }); end = CITED.lastIndex; }
      else { end = here + (sign === "!" ? 2 : 1); brackets.push(parts.length); parts.push({ text: text.slice(here, end) }); }
    } else if (sign === "]") {
      TARGET.lastIndex = here + 1;
      const from = brackets.pop(), target = from !== undefined && text[here + 1] === "(" && TARGET.exec(text);
      say(here);
      if (target && SAFE.test(target[1])) {
        const isImage = parts[from].text === "![";
        parts[from] = { opens: "a", href: target[1] };
        if (isImage) parts[from].label = "image: ";
        parts.push({ closes: true });
        for (const stack of Object.values(open)) while (stack.length && stack.at(-1) > from) stack.pop();
        brackets.length = 0;
        end = TARGET.lastIndex;
      } else { parts.push({ text: "]" }); end = here + 1; }
    } else if (sign === "<") {
      ANGLED.lastIndex = here;
      const found = ANGLED.exec(text);
      if (found) { say(here); parts.push({ node: anchor(found[1].includes("://") ? found[1] : `mailto:${found[1]}`, found[1]) }); end = ANGLED.lastIndex; }
    } else if (sign === "$") {
      DOLLARS.lastIndex = here;
      const found = DOLLARS.exec(text);
      if (found) { say(here); parts.push({ node: inlineMaths(found[1]) }); end = DOLLARS.lastIndex; }
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
  const sign = text[here], before = text[here - 1] || " ", after = text[end] || " ";
  const left = !/\s/.test(after) && (!/[\p{P}\p{S}]/u.test(after) || /[\s\p{P}\p{S}]/u.test(before));
  const right = !/\s/.test(before) && (!/[\p{P}\p{S}]/u.test(before) || /[\s\p{P}\p{S}]/u.test(after));
  const isWord = sign === "_" && /\w/.test(before) && /\w/.test(after);
  let count = end - here;
  const stack = open[sign];
  while (right && !isWord && count && stack.length) {
    const from = stack.at(-1), opener = parts[from];
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
    if (stack.length > DEEPEST) { tooDeep += 1; return; }
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

const unpadded = (text) => text.startsWith(" ") && text.endsWith(" ") && text.trim() ? text.slice(1, -1) : text;

const runLength = (text, at, sign) => { let end = at; while (text[end] === sign) end += 1; return end - at; };

/** Know where runs of backticks stand, by their lengths, so that each is looked for once. */
function tickRuns(text) {
  const places = new Map(), looked = new Map();
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

// --- text that is still being written ---

/** Shows markdown while it grows: finished blocks stay as they are, the open end is drawn anew, at most once a frame. */
export class Live {
  /** @param {HTMLElement} into */
  constructor(into, about = {}) {
    this.into = into;
    this.about = about;
    this.text = "";
    this.done = 0; // characters that are drawn for good
    this.scanned = 0;
    this.fence = "";
    this.tail = [];
    this.waiting = 0;
  }

  /** Add a piece of text. */
  push(piece) {
    this.text += piece;
    if (!this.waiting) {
      const pause = this.text.length - this.done > 20_000 ? 400 : 0;
      this.waiting = pause ? setTimeout(() => requestAnimationFrame(() => this.draw()), pause) : requestAnimationFrame(() => this.draw());
    }
  }

  /** Draw what has come, without looking ahead. */
  draw() {
    this.waiting = 0;
    let line;
    while ((line = this.text.indexOf("\n", this.scanned)) >= 0) {
      const words = this.text.slice(this.scanned, line);
      const found = /^ {0,3}(`{3,}|~{3,})/.exec(words);
      if (this.fence) { if (found && found[1][0] === this.fence[0] && found[1].length >= this.fence.length && !words.trim().slice(found[1].length)) this.fence = ""; }
      else if (found) this.fence = found[1];
      this.scanned = line + 1;
      const isBlank = !words.trim() && !this.fence, next = this.text[line + 1];
      if (isBlank && next !== undefined && !/[\s\d*+-]/.test(next)) this.settle(line + 1);
    }
    for (const node of this.tail) node.remove();
    const rest = render(this.text.slice(this.done), this.about);
    this.tail = [...rest.childNodes];
    this.into.append(rest);
  }

  settle(upTo) {
    for (const node of this.tail) node.remove();
    this.tail = [];
    this.into.append(render(this.text.slice(this.done, upTo), this.about));
    this.done = upTo;
  }

  /** Draw the whole for good. */
  finish() {
    cancelAnimationFrame(this.waiting);
    clearTimeout(this.waiting);
    this.into.replaceChildren(render(this.text, this.about));
  }
}
