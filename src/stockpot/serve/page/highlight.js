/** Colours for code: strings, comments, numbers, keywords. Every pattern is linear in the length of the code. */

const WORDS = {
  python:
    "and as assert async await break case class continue def del elif else except finally for from global if import in is lambda match None nonlocal not or pass raise return self True False try while with yield",
  js: "async await break case catch class const continue default delete do else export extends false finally for from function if import in instanceof interface let new null of return static super switch this throw true try type typeof undefined var void while yield",
  c: "auto bool break case catch char class const continue default delete do double else enum extern false final float fn for func go goto if impl implements import include inline int interface let long match mod mut namespace new null nullptr package private protected pub public register return self short signed sizeof static struct super switch template this throw true try type typedef typename union unsigned use using var virtual void volatile while",
  shell: "case do done elif else esac export fi for function if in local return set then until while echo cd sudo pip git",
  sql: "add all alter and as asc between by case create delete desc distinct drop else end exists from full group having in index inner insert into is join key left like limit not null on or order outer primary references right select set table then union unique update values view when where with",
  css: "important media import supports keyframes from to",
  json: "true false null",
};
const NAMES = {
  py: "python",
  python3: "python",
  javascript: "js",
  jsx: "js",
  ts: "js",
  tsx: "js",
  typescript: "js",
  mjs: "js",
  cpp: "c",
  "c++": "c",
  cc: "c",
  h: "c",
  hpp: "c",
  cs: "c",
  java: "c",
  rust: "c",
  rs: "c",
  go: "c",
  swift: "c",
  kotlin: "c",
  php: "c",
  bash: "shell",
  sh: "shell",
  zsh: "shell",
  console: "shell",
  yaml: "python",
  yml: "python",
  toml: "python",
  jsonl: "json",
};
const HASH = new Set(["python", "shell"]);
const MOST = 60_000;
const made = new Map();

function pattern(kind) {
  if (!made.has(kind)) {
    const comment = HASH.has(kind)
      ? "#[^\\n]*"
      : kind === "sql"
        ? "--[^\\n]*"
        : kind === "json"
          ? "(?!)"
          : "\\/\\/[^\\n]*|\\/\\*[\\s\\S]{0,20000}?\\*\\/";
    const text =
      (kind === "python" ? '"""[\\s\\S]{0,20000}?"""|' : "") +
      "\"(?:\\\\.|[^\"\\\\\\n])*\"?|'(?:\\\\.|[^'\\\\\\n])*'?" +
      (kind === "js" ? "|`(?:\\\\.|[^`\\\\])*`?" : "");
    made.set(kind, {
      words: new Set(WORDS[kind].split(" ")),
      find: new RegExp(`(?<c>${comment})|(?<s>${text})|(?<n>\\b\\d[\\w.]*)|(?<w>[A-Za-z_]\\w*)`, kind === "sql" ? "gi" : "g"),
    });
  }
  return made.get(kind);
}

/**
 * Put code into an element, coloured where the language is known.
 * @param {HTMLElement} into
 */
export function highlight(into, code, language) {
  const kind = NAMES[language] || (WORDS[language] ? language : "");
  if (!kind || code.length > MOST) {
    into.textContent = code;
    return;
  }
  const { words, find } = pattern(kind);
  let at = 0;
  for (const match of code.matchAll(find)) {
    const { c, s, n, w } = match.groups;
    const name =
      c !== undefined
        ? "hl-c"
        : s !== undefined
          ? "hl-s"
          : n !== undefined
            ? "hl-n"
            : words.has(kind === "sql" ? w.toLowerCase() : w)
              ? "hl-k"
              : "";
    if (!name) continue;
    if (match.index > at) into.append(code.slice(at, match.index));
    const span = document.createElement("span");
    span.className = name;
    span.textContent = match[0];
    into.append(span);
    at = match.index + match[0].length;
  }
  if (at < code.length) into.append(code.slice(at));
}
