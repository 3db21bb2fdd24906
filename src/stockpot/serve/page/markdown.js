/**
 * Markdown as DOM nodes. What a model or a document writes is hostile until it is here: no markup is ever parsed as HTML, links go
 * to http, https and mailto only, images are not loaded, and nesting ends at a depth that a page can bear. Every step is linear in
 * the length of the text.
 */

import { copyText } from "./dom.js";
import { highlight } from "./highlight.js";
import { DEEPEST, inline } from "./inline.js";
import { maths } from "./maths.js";

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
    else if (line.includes("|") && at + 1 < lines.length && lines[at + 1].length < 1000 && DELIMITERS.test(lines[at + 1]))
      at = table(lines, at, into, about);
    else at = paragraph(lines, at, into, depth, about);
  }
}

function fence(lines, at, into) {
  const found = FENCE.exec(lines[at]),
    marks = found[1] || found[2];
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
    copy.textContent = await copyText(text).then(
      () => "Copied",
      () => "Not copied",
    );
    setTimeout(() => {
      copy.textContent = "Copy";
    }, 1500);
  });
  const pre = element("pre", figure);
  pre.tabIndex = 0;
  highlight(element("code", pre), text, language);
}

function formula(lines, at, into) {
  const open = lines[at].includes("$$") ? "$$" : "\\[",
    close = open === "$$" ? "$$" : "\\]";
  const first = lines[at].slice(lines[at].indexOf(open) + 2);
  const body = [];
  let next = at,
    rest = first;
  for (;;) {
    const end = rest.indexOf(close);
    if (end >= 0) {
      body.push(rest.slice(0, end));
      break;
    }
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
  while (next < lines.length && (QUOTE.test(lines[next]) || (lines[next].trim() && inner.at(-1)?.trim() && !starts(lines[next]))))
    inner.push(lines[next++].replace(QUOTE, ""));
  blocks(inner, element("blockquote", into), depth + 1, about);
  return next;
}

const starts = (line) => FENCE.test(line) || HEADING.test(line) || RULE.test(line) || QUOTE.test(line) || ITEM.test(line);

function list(lines, at, into, depth, about) {
  const [, , mark] = ITEM.exec(lines[at]);
  const isOrdered = /\d/.test(mark),
    kind = mark.at(-1);
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
      const line = lines[next],
        indent = line.length - line.trimStart().length;
      if (!line.trim()) {
        if (
          next + 1 >= lines.length ||
          lines[next + 1].length - lines[next + 1].trimStart().length < Math.min(width, 2) ||
          !lines[next + 1].trim()
        )
          break;
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
  const aligned = cells(lines[at + 1]).map((cell) =>
    cell.startsWith(":") && cell.endsWith(":") ? "center" : cell.endsWith(":") ? "right" : "",
  );
  const frame = element("div", into, "scroll");
  frame.tabIndex = 0;
  frame.setAttribute("role", "region");
  frame.setAttribute("aria-label", "table");
  const made = element("table", frame);
  row(lines[at], element("tr", element("thead", made)), "th", aligned, about);
  const body = element("tbody", made);
  let next = at + 2;
  while (next < lines.length && lines[next].trim() && lines[next].includes("|"))
    row(lines[next++], element("tr", body), "td", aligned, about);
  return next;
}

const cells = (line) =>
  line
    .trim()
    .replace(/^\|/, "")
    .replace(/(^|[^\\])\|$/, "$1")
    .split(/(?<!\\)\|/)
    .slice(0, 60)
    .map((cell) => cell.trim().replace(/\\\|/g, "|"));

function row(line, into, tag, aligned, about) {
  const found = cells(line);
  aligned.slice(0, 60).forEach((side, index) => inline(found[index] || "", element(tag, into, side), about));
}

function paragraph(lines, at, into, depth, about) {
  let next = at + 1;
  while (
    next < lines.length &&
    lines[next].trim() &&
    !(starts(lines[next]) && (depth < DEEPEST || !(QUOTE.test(lines[next]) || ITEM.test(lines[next])))) &&
    !/^ {0,3}(\$\$|\\\[)/.test(lines[next])
  )
    next += 1;
  inline(lines.slice(at, next).join("\n"), element("p", into), about);
  return next;
}
