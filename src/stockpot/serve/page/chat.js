/** Chat: conversations that are kept, answers that stream, branches, documents, thumbs. */

import { del, post, stream } from "./api.js";
import { showDocuments, takeFiles, takesDocuments } from "./documents.js";
import { button, h, icon, isTyping, toast, tried } from "./dom.js";
import { Live } from "./live.js";
import { aboutOf, drawMessage } from "./message.js";
import { asDataUrl, isPicture } from "./pictures.js";
import { showSettings } from "./settings.js";
import { can, chosenModel, empty, modelSelect, rater, sampling, shared } from "./shared.js";
import { conversations, forget, keep, preferences } from "./store.js";
import { add, begin, messages, path } from "./talk.js";

const IDEAS = [
  "Explain what a tokenizer does, in three sentences.",
  "Write a Python function that reverses a string.",
  "Give me a recipe for a soup from what is left in the kitchen.",
];
let talk = begin(preferences.system);
let running = null;

/** Draw the view. @param {HTMLElement} main @param {string} id of a conversation */
export async function show(main, id) {
  const known = (await tried(conversations)) || [];
  if (id && id !== talk.id) talk = known.find((one) => one.id === id) || begin(preferences.system);
  const view = new ChatView(main);
  view.draw();
  await side(known);
  return () => view.leave();
}

/** List the conversations at the side. */
async function side(known) {
  const found = known || (await conversations());
  document.getElementById("side").replaceChildren(
    button("New chat (n)", { name: "plus", word: "New chat", kind: "grow", onclick: fresh }),
    h("div.label", {}, found.length ? "Conversations" : ""),
    ...found.map((one) =>
      h(
        `div.past${one.id === talk.id ? ".here" : ""}`,
        {},
        h(
          "a",
          { href: `#/chat/${one.id}`, title: one.title, "aria-current": one.id === talk.id ? "page" : undefined },
          one.title || "…",
        ),
        button(`Delete “${one.title}”`, {
          name: "bin",
          onclick: async () => {
            await forget(one.id);
            if (one.id === talk.id) fresh();
            else await side();
          },
        }),
      ),
    ),
  );
}

function fresh() {
  talk = begin(preferences.system);
  document.body.classList.remove("drawer");
  if (location.hash === "#/chat") dispatchEvent(new HashChangeEvent("hashchange"));
  else location.hash = "#/chat";
}

class ChatView {
  constructor(main) {
    this.main = main;
    this.images = [];
    this.log = h("div.talk", { role: "log", "aria-live": "off", "aria-label": "Conversation" });
    this.input = h("textarea", {
      rows: 1,
      id: "ask",
      placeholder: "Ask something …",
      "aria-label": "Your message",
      onkeydown: (event) => this.key(event),
      oninput: () => this.grow(),
      onpaste: (event) => this.take(event.clipboardData?.files),
    });
    this.send = button("Send (Enter)", { name: "send", kind: "main", onclick: () => (running ? this.stop() : this.ask()) });
    this.attached = h("div.row");
    this.told = h("div.hush", { "aria-live": "polite" });
    this.onkey = (event) => this.anywhere(event);
    document.addEventListener("keydown", this.onkey);
  }

  leave() {
    document.removeEventListener("keydown", this.onkey);
    running?.abort();
  }

  draw() {
    const model = chosenModel((one) => one.can.includes("complete"));
    preferences.model = model;
    this.main.replaceChildren(
      h(
        "section.chat",
        {
          "aria-label": "Chat",
          ondragover: (event) => {
            event.preventDefault();
            this.main.classList.add("drop");
          },
          ondragleave: () => this.main.classList.remove("drop"),
          ondrop: (event) => {
            event.preventDefault();
            this.main.classList.remove("drop");
            this.take(event.dataTransfer.files);
          },
        },
        h(
          "div.top",
          {},
          button("Conversations", { name: "menu", kind: "phone", onclick: () => document.body.classList.toggle("drawer") }),
          h("h1.hush", {}, "Chat"),
          h("label.hush", { htmlFor: "model" }, "Model"),
          Object.assign(
            modelSelect(
              model,
              (name) => {
                preferences.model = name;
                this.draw();
              },
              (one) => one.can.includes("complete"),
            ),
            { id: "model" },
          ),
          h("span.grow"),
          button("Documents", { name: "file", onclick: () => showDocuments(() => this.attach()) }),
          button("System prompt and sampling", { name: "tune", onclick: () => showSettings(talk) }),
          button("New chat (n)", { name: "plus", kind: "phone", onclick: fresh }),
        ),
        h("div.middle", {}, this.log),
        h(
          "form.composer",
          {
            onsubmit: (event) => {
              event.preventDefault();
              this.ask();
            },
          },
          this.attached,
          h("div.box", {}, this.attachButton(), this.input, this.send),
          this.told,
          h(
            "p.hint.soft",
            {},
            h("kbd", {}, "Enter"),
            " sends · ",
            h("kbd", {}, "Shift Enter"),
            " new line · ",
            h("kbd", {}, "Esc"),
            " stops · everything stays on this machine",
          ),
        ),
      ),
    );
    this.drawLog();
    this.attach();
    this.grow();
    if (matchMedia("(min-width: 821px)").matches) this.input.focus();
  }

  attachButton() {
    const picker = h("input", {
      type: "file",
      multiple: true,
      hidden: true,
      onchange: () => {
        this.take(picker.files);
        picker.value = "";
      },
    });
    return [
      picker,
      button(can(preferences.model, "image") ? "Add documents or images" : "Add documents", {
        name: "plus",
        onclick: () => picker.click(),
      }),
    ];
  }

  async take(files) {
    for (const file of files || []) {
      if (!isPicture(file)) await tried(() => takeFiles([file]));
      else if (!can(preferences.model, "image")) toast("This model does not take images.", "bad");
      else await tried(async () => this.images.push(await asDataUrl(file)));
    }
    this.attach();
  }

  async attach() {
    const { documents, is_fixed } = await takesDocuments();
    const isUsed = h("input", {
      type: "checkbox",
      checked: preferences.documents,
      onchange: (event) => {
        preferences.documents = event.target.checked;
      },
    });
    this.attached.replaceChildren(
      ...this.images.map((url, index) =>
        h(
          "span.chip",
          {},
          h("img", { src: url, alt: "attached image", height: 34 }),
          button("Remove the image", {
            name: "close",
            onclick: () => {
              this.images.splice(index, 1);
              this.attach();
            },
          }),
        ),
      ),
      ...(documents.length || is_fixed
        ? [
            h(
              "label.check.small",
              {},
              isUsed,
              documents.length
                ? `Answer from ${documents.length === 1 ? "1 document" : `${documents.length} documents`}`
                : "Answer from the server's documents",
            ),
          ]
        : []),
    );
  }

  // --- messages ---

  drawLog() {
    const said = path(talk);
    this.log.replaceChildren(...said.map((node) => this.message(node)));
    if (!said.length) this.log.append(this.welcome());
    this.bottom(true);
  }

  welcome() {
    if (!shared.models.length) return empty(icon("chat"), "No model is served");
    const more = can(preferences.model, "image") ? " It sees pictures, too: drop or paste one." : "";
    const words = can(preferences.model, "chat")
      ? `Ask something. Drop documents in to have answers from them, with the passages they rest on.${more}`
      : "This model continues text; it was not trained on conversations. Begin a sentence and it goes on.";
    return empty(
      icon("chat"),
      `Talk with ${preferences.model}`,
      h("p", {}, words),
      can(preferences.model, "chat") &&
        h(
          "div.ideas",
          {},
          IDEAS.map((text) =>
            button(text, {
              word: text,
              onclick: () => {
                this.input.value = text;
                this.ask();
              },
            }),
          ),
        ),
    );
  }

  message(node) {
    return drawMessage(this, talk, node);
  }

  // --- asking ---

  async ask() {
    const text = this.input.value.trim();
    if ((!text && !this.images.length) || running) return;
    this.input.value = "";
    this.grow();
    const images = this.images.splice(0);
    const node = add(talk, talk.leaf, "user", text, images.length ? { images } : {});
    this.attach();
    await this.answer(node.id);
  }

  /** Have a message answered; the answer is one more version if there is one already. */
  async answer(parent) {
    if (running) return;
    talk.leaf = parent;
    const asked = preferences.model,
      here = talk,
      settings = sampling();
    const sent = messages(here, parent);
    tried(() => keep(structuredClone(here))); // a page that is closed now has the question still
    const node = add(here, parent, "assistant", "", { model: asked, sampling: settings });
    this.drawLog();
    if (location.hash !== `#/chat/${here.id}`) history.replaceState(null, "", `#/chat/${here.id}`);
    const spot = this.log.lastElementChild.querySelector(".said");
    spot.classList.add("writing");
    const live = new Live(spot, aboutOf(node));
    const begun = performance.now();
    running = new AbortController();
    this.toggle(true);
    try {
      const body = { model: asked, stream: true, stream_options: { include_usage: true }, ...settings };
      const isChat = can(asked, "chat");
      Object.assign(
        body,
        isChat ? { messages: sent, documents: preferences.documents } : { prompt: String(sent.at(-1).content) },
      );
      await stream(isChat ? "/v1/chat/completions" : "/v1/completions", body, (event) => this.heard(event, node, live), {
        signal: running.signal,
      });
    } catch (error) {
      if (error.name === "AbortError") node.reason = "stopped";
      else node.error = error.message;
    }
    node.seconds = (performance.now() - begun) / 1000;
    node.content = live.text;
    running = null;
    live.finish();
    this.toggle(false);
    if (talk === here) {
      const old = [...this.log.children].find((one) => one.dataset.id === node.id);
      old?.replaceWith(this.message(node));
      this.bottom();
    }
    this.told.textContent = node.error ? "" : "The answer is complete.";
    await tried(() => keep(here));
    if (this.log.isConnected) await side(); // the side belongs to another view otherwise
  }

  heard(event, node, live) {
    if (event.sources) {
      node.sources = event.sources;
      live.about = aboutOf(node);
    }
    if (event.usage) node.tokens = event.usage.completion_tokens;
    const choice = event.choices?.[0];
    if (!choice) return;
    live.push(choice.delta?.content ?? choice.text ?? "");
    if (choice.finish_reason) node.reason = choice.finish_reason;
    this.bottom();
  }

  stop() {
    running?.abort();
  }

  toggle(isRunning) {
    this.send.replaceChildren(icon(isRunning ? "stop" : "send"));
    this.send.title = isRunning ? "Stop (Esc)" : "Send (Enter)";
    this.send.setAttribute("aria-label", this.send.title);
    this.told.textContent = isRunning ? "The model is writing." : "";
  }

  edit(node) {
    const area = h("textarea", { rows: 3, value: node.content, "aria-label": "Edit your message" });
    const spot = [...this.log.children].find((one) => one.dataset.id === node.id);
    const again = () => {
      const text = area.value.trim();
      if (!text || running) return;
      const made = add(talk, node.parent, "user", text, node.images ? { images: node.images } : {});
      this.answer(made.id);
    };
    area.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        again();
      }
      if (event.key === "Escape") {
        event.stopPropagation();
        this.drawLog();
      }
    });
    spot.replaceChildren(
      area,
      h(
        "div.row",
        {},
        button("Ask again", { word: "Ask again", kind: "main", onclick: again }),
        button("Cancel", { word: "Cancel", onclick: () => this.drawLog() }),
      ),
    );
    area.focus();
  }

  async thumb(node, isUp) {
    const name = isUp ? "up" : "down",
      id = node.thumbId || node.id;
    await tried(async () => {
      if (node.thumb === name) {
        await del(`/v1/compare/thumbs/${id}`);
        node.thumb = null;
      } else {
        await post("/v1/compare/thumbs", {
          id,
          messages: messages(talk, node.parent).map((one) => ({
            role: one.role,
            content: typeof one.content === "string" ? one.content : one.content[0].text,
          })),
          answer: node.content,
          model: node.model,
          sampling: node.sampling || {},
          is_up: isUp,
          rater: rater(),
        });
        node.thumb = name;
        toast("Thank you. This prompt now waits under Compare, where another answer is set beside this one.");
      }
      await keep(talk);
    });
    this.log.querySelector(`[data-id="${node.id}"]`)?.replaceWith(this.message(node));
  }

  // --- odds and ends ---

  key(event) {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      this.ask();
    }
    if (event.key === "ArrowUp" && !this.input.value) {
      const mine = path(talk)
        .filter((one) => one.role === "user")
        .at(-1);
      if (mine && !running) {
        event.preventDefault();
        this.edit(mine);
      }
    }
  }

  anywhere(event) {
    if (event.key === "Escape") {
      document.body.classList.remove("drawer");
      this.stop();
    }
    if (isTyping() || event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
    if (event.key === "n") fresh();
    if (event.key === "/") {
      event.preventDefault();
      this.input.focus();
    }
  }

  grow() {
    this.input.style.height = "auto";
    this.input.style.height = `${Math.min(this.input.scrollHeight + 2, 220)}px`;
  }

  /** Keep the end in sight, unless somebody reads further up. */
  bottom(isSure = false) {
    const box = this.log.parentElement;
    if (box && (isSure || box.scrollHeight - box.scrollTop - box.clientHeight < 160)) box.scrollTop = box.scrollHeight;
  }
}
