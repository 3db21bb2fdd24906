/** What holds for one conversation: the system prompt, sampling settings, and saving it as a file. */

import { button, download, field, h } from "./dom.js";
import { keep, preferences } from "./store.js";
import { asMarkdown, asRecord, path } from "./talk.js";

/** Open the dialog. @param {any} talk the conversation */
export function showSettings(talk) {
  const number = (key, label, hint, step = "any") =>
    field(
      label,
      h("input", {
        type: "number",
        step,
        min: 0,
        value: preferences[key],
        placeholder: key === "seed" ? "a new one" : "model's own",
        oninput: (event) => {
          preferences[key] = event.target.value;
        },
      }),
      hint,
    );
  const system = h("textarea", {
    rows: 4,
    value: talk.system,
    placeholder: "You are …",
    oninput: (event) => {
      talk.system = preferences.system = event.target.value;
    },
  });
  const dialog = h(
    "dialog",
    { "aria-labelledby": "settings-title" },
    h(
      "form",
      { method: "dialog" },
      h("h2", { id: "settings-title" }, "This conversation"),
      field("System prompt", system, "Said before everything else."),
      h(
        "div.fields",
        {},
        number("temperature", "Temperature", "0: always the likeliest"),
        number("top_p", "Top p", "0 to 1", 0.05),
        number("top_k", "Top k", "", 1),
        number("max_tokens", "Longest answer", "in tokens", 1),
        number("seed", "Seed", "same seed, same answer", 1),
      ),
      h(
        "div.row",
        {},
        button("Save as Markdown", {
          name: "save",
          word: "Markdown",
          onclick: () => download(`${talk.title || "chat"}.md`, asMarkdown(talk), "text/markdown"),
        }),
        button("Save as JSON lines", {
          name: "save",
          word: "JSON lines",
          onclick: () => download(`${talk.title || "chat"}.jsonl`, asRecord(talk), "application/x-ndjson"),
        }),
        h("span.grow"),
        h("button.btn.main", {}, "Done"),
      ),
    ),
  );
  dialog.addEventListener("close", () => {
    dialog.remove();
    if (path(talk).length) keep(talk);
  });
  document.body.append(dialog);
  dialog.showModal();
}
