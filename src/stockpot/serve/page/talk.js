/** A conversation as a tree: editing and asking again make branches, and nothing is lost. Pure data; nothing here draws. */

import { newId } from "./dom.js";

/** Begin a conversation. */
export const begin = (system = "") => ({
  id: newId(),
  title: "",
  created: Date.now(),
  changed: Date.now(),
  system,
  nodes: {},
  leaf: null,
});

/** Add a message behind another one and stand on it. */
export function add(talk, parent, role, content, more = {}) {
  const node = { id: newId(), parent, role, content, ...more };
  talk.nodes[node.id] = node;
  talk.leaf = node.id;
  talk.changed = Date.now();
  if (!talk.title && role === "user") talk.title = content.trim().slice(0, 80).replace(/\s+/g, " ") || "…";
  return node;
}

/** The messages from the first one to where we stand. */
export function path(talk, leaf = talk.leaf) {
  const found = [];
  for (let node = talk.nodes[leaf]; node; node = talk.nodes[node.parent]) found.unshift(node);
  return found;
}

/** The versions of a message: those with the same one before them and the same role. */
export const versions = (talk, node) =>
  Object.values(talk.nodes).filter((one) => one.parent === node.parent && one.role === node.role);

/** Stand on another version of a message, as far down as its latest branch goes. */
export function turnTo(talk, node) {
  let here = node;
  for (;;) {
    const below = Object.values(talk.nodes).filter((one) => one.parent === here.id);
    if (!below.length) break;
    here = below.at(-1);
  }
  talk.leaf = here.id;
}

/** What is sent to the model: the system's word, then the messages up to a node. */
export function messages(talk, leaf) {
  const said = path(talk, leaf).map(({ role, content, images }) => ({
    role,
    content: images?.length
      ? [{ type: "text", text: content }, ...images.map((url) => ({ type: "image_url", image_url: { url } }))]
      : content,
  }));
  return talk.system.trim() ? [{ role: "system", content: talk.system.trim() }, ...said] : said;
}

/** A conversation as training reads it: one JSON line. */
export const asRecord = (talk) => `${JSON.stringify({ messages: messages(talk, talk.leaf) })}\n`;

/** A conversation for people. */
export const asMarkdown = (talk) =>
  `# ${talk.title}\n\n${messages(talk, talk.leaf)
    .map((one) => `**${one.role}**\n\n${typeof one.content === "string" ? one.content : one.content[0].text}\n`)
    .join("\n")}`;
