/** One message of a conversation, with what can be done to it. */

import { showPassage } from "./documents.js";
import { button, copyText, h, toast, tried } from "./dom.js";
import { render } from "./markdown.js";
import { shared } from "./shared.js";
import { keep } from "./store.js";
import { messages, turnTo, versions } from "./talk.js";

/**
 * Draw a message.
 * @param {any} view the chat, whose answer, edit, thumb and drawLog are used
 * @param {any} talk the conversation
 * @param {any} node the message
 */
export function drawMessage(view, talk, node) {
  const isMine = node.role === "user";
  const body = h(isMine ? "div.said" : "div.said.prose");
  if (isMine) body.textContent = node.content;
  else body.append(render(node.content, aboutOf(node)));
  const made = h(
    `article.message.${isMine ? "mine" : "theirs"}`,
    { "aria-label": isMine ? "You" : node.model || "Model" },
    (node.images || []).map((url) => h("img.sent", { src: url, alt: "image you sent" })),
    body,
    node.error && h("p.notice", {}, node.error),
    !isMine && sources(node),
    h("div.tools.row", {}, tools(view, talk, node, isMine)),
  );
  made.dataset.id = node.id;
  return made;
}

/** What markdown needs to know of an answer: how many passages it may cite, and what a citation does. */
export function aboutOf(node) {
  return { sources: node.sources?.length || 0, cite: (number) => showPassage(node.sources[number - 1]) };
}

function sources(node) {
  if (!node.sources?.length) return null;
  return h(
    "div.sources.row.small",
    {},
    h("span.soft", {}, "Passages shown to the model:"),
    node.sources.map((one, index) =>
      h(
        "button.cite",
        {
          type: "button",
          title: one.title || one.file,
          "aria-label": `Passage ${index + 1}: ${one.title || one.file}`,
          onclick: () => showPassage(one),
        },
        String(index + 1),
      ),
    ),
  );
}

function tools(view, talk, node, isMine) {
  const all = versions(talk, node),
    at = all.indexOf(node);
  const turn = (step) => {
    turnTo(talk, all[at + step]);
    keep(talk);
    view.drawLog();
  };
  const branches =
    all.length > 1 &&
    h(
      "span.row.versions",
      {},
      button("Earlier version", { name: "left", disabled: at === 0, onclick: () => turn(-1) }),
      h("span.small.soft", {}, `${at + 1} / ${all.length}`),
      button("Later version", { name: "right", disabled: at === all.length - 1, onclick: () => turn(1) }),
    );
  const copy = button("Copy", {
    name: "copy",
    onclick: () => tried(() => copyText(node.content).then(() => toast("Copied."))),
  });
  if (isMine) {
    const edit = button("Edit and ask again", { name: "edit", onclick: () => view.edit(node) });
    // the page was left or loaded anew before the answer was there
    const isOpen = !Object.values(talk.nodes).some((one) => one.parent === node.id);
    const answer = isOpen && button("Answer", { name: "again", onclick: () => view.answer(node.id) });
    return [branches, answer, edit, copy];
  }
  const thumb = (isUp) =>
    button(isUp ? "Good answer" : "Bad answer", {
      name: isUp ? "up" : "down",
      "aria-pressed": String(node.thumb === (isUp ? "up" : "down")),
      onclick: () => view.thumb(node, isUp),
    });
  return [
    branches,
    copy,
    button("Answer again", { name: "again", onclick: () => view.answer(node.parent) }),
    button("Look inside", {
      name: "inside",
      onclick: () => {
        shared.look = { model: node.model, messages: messages(talk, node.id) };
        location.hash = "#/inside";
      },
    }),
    thumb(true),
    thumb(false),
    (node.reason || node.error) && h("span.small.soft.facts", {}, facts(node)),
  ];
}

/** Say who wrote an answer, how long it is, how fast it came and why it ended. */
function facts(node) {
  const speed = node.tokens && node.seconds ? `, ${(node.tokens / node.seconds).toFixed(0)} a second` : "";
  const ends = { length: "cut at the limit", stopped: "stopped" };
  return [node.model, node.tokens && `${node.tokens} tokens${speed}`, ends[node.reason]].filter(Boolean).join(" · ");
}
