/** Compare and vote: two answers, blind and in random order; arrow keys decide. What was clicked is what training reads. */

import { del, get, post, text as getText } from "./api.js";
import { button, download, field, h, icon, isTyping, newId, percent, toast, tried } from "./dom.js";
import { render } from "./markdown.js";
import { empty, modelSelect, shared } from "./shared.js";
import { preferences } from "./store.js";

/** Draw the view. @param {HTMLElement} main */
export async function show(main) {
  const view = new CompareView(main);
  await view.begin();
  return () => document.removeEventListener("keydown", view.onkey);
}

class CompareView {
  constructor(main) {
    this.main = main;
    this.cast = [];
    this.pair = null;
    this.ahead = null;
    this.busy = false;
    this.onkey = (event) => this.key(event);
    document.addEventListener("keydown", this.onkey);
  }

  get writers() {
    return shared.models.filter((one) => one.can.includes("complete"));
  }

  async begin() {
    const names = this.writers.map((one) => one.id);
    const handed = shared.compare;
    shared.compare = null;
    if (handed) [preferences.first, preferences.second] = handed;
    if (!names.includes(preferences.first)) preferences.first = names[0] || "";
    if (!names.includes(preferences.second)) preferences.second = names[1] || names[0] || "";
    await this.setUp();
    if (handed && preferences.rater) await this.next();
  }

  /** Ask who votes, on what. */
  async setUp() {
    this.pair = this.ahead = null; // what was fetched ahead is for the rater, the models and the settings of before
    const told = await tried(() => get(`/v1/compare/summary?rater=${encodeURIComponent(preferences.rater)}`));
    if (!told) return;
    const { counts, agreement } = told;
    const name = h("input", {
      id: "rater",
      value: preferences.rater,
      maxLength: 60,
      placeholder: "needed: whose votes these are",
      oninput: () => {
        preferences.rater = name.value;
      },
      onkeydown: (event) => {
        if (event.key === "Enter") this.next();
      },
    });
    const prompts = h("textarea", { id: "prompts", rows: 4, placeholder: "One prompt a line, or JSON lines" });
    const picker = h("input", {
      type: "file",
      hidden: true,
      accept: ".txt,.jsonl,.json,.md",
      onchange: async () => {
        const file = picker.files[0];
        if (file) await this.addPrompts(await file.text(), file.name);
      },
    });
    const models = (key) =>
      modelSelect(
        preferences[key],
        (value) => {
          preferences[key] = value;
        },
        (one) => one.can.includes("complete"),
      );
    this.main.replaceChildren(
      h(
        "div.view",
        {},
        h("h1", {}, "Compare and vote"),
        h(
          "p.soft",
          {},
          "Two answers to the same prompt, side by side. You do not see who wrote which. Your votes are the data that make the next model.",
        ),
        h(
          "div.two",
          {},
          h(
            "section.card.stack",
            {},
            h("h2", {}, "Vote"),
            field("Your name", name),
            h("div.fields", {}, field("One model", models("first")), field("The other", models("second"))),
            h("p.soft.small", {}, "The same model twice compares two samples of it: the best data for training that model."),
            h("div.fields", {}, this.number("compareTemperature", "Temperature"), this.number("compareTokens", "Longest answer")),
            h(
              "div.row",
              {},
              button("Start", { word: counts.mine ? "Go on" : "Start", kind: "main", onclick: () => this.next() }),
              h("span.soft.small", {}, `${counts.prompts} prompts in the queue`),
            ),
          ),
          h(
            "section.card.stack",
            {},
            h("h2", {}, "Prompts"),
            field("Add prompts", prompts, "Thumbs in the chat add theirs, too."),
            h(
              "div.row",
              {},
              button("Add", {
                word: "Add",
                onclick: async () => {
                  if (prompts.value.trim()) await this.addPrompts(prompts.value, "typed");
                },
              }),
              picker,
              button("From a file", { name: "file", word: "From a file", onclick: () => picker.click() }),
            ),
          ),
        ),
        h(
          "section.card",
          {},
          h("h2", {}, "So far"),
          h(
            "div.figures",
            {},
            figure(counts.votes, "comparisons"),
            figure(counts.ties, "of them ties"),
            figure(counts.skips, "skipped"),
            figure(counts.thumbs, "thumbs"),
            figure(agreement.raters, agreement.raters === 1 ? "rater" : "raters"),
            figure(
              agreement.agreement === null ? "–" : percent(agreement.agreement),
              "agreement",
              agreement.alpha === null
                ? "needs two people on the same pairs"
                : `alpha ${agreement.alpha.toFixed(2)} on ${agreement.pairs} pairs`,
            ),
          ),
          h(
            "p.soft.small",
            {},
            "All of it is in ",
            h("code", {}, told.file),
            ", which ",
            h("code", {}, "stockpot dpo MODEL --data"),
            " reads as it is.",
          ),
          h(
            "div.row",
            {},
            button("Save as JSON lines", {
              name: "save",
              word: "Export",
              disabled: !counts.votes,
              onclick: () =>
                tried(async () => download("votes.jsonl", await getText("/v1/compare/votes.jsonl"), "application/x-ndjson")),
            }),
            h("a.btn", { href: "#/train" }, "Train on it"),
          ),
        ),
      ),
    );
    if (!preferences.rater && matchMedia("(min-width: 821px)").matches) name.focus();
  }

  number(key, label) {
    return field(
      label,
      h("input", {
        type: "number",
        min: 0,
        step: "any",
        value: preferences[key],
        oninput: (event) => {
          preferences[key] = event.target.value;
        },
      }),
    );
  }

  async addPrompts(text, source) {
    const told = await tried(() => post("/v1/compare/prompts", { text, source }));
    if (told) {
      toast(`${told.added} of ${told.found} prompts are new and wait now.`);
      await this.setUp();
    }
  }

  /** Fetch a pair. */
  fetch(taken = []) {
    const sampling = {
      temperature: Number(preferences.compareTemperature) || 0,
      max_tokens: Number(preferences.compareTokens) || 256,
    };
    return post("/v1/compare/next", {
      rater: preferences.rater.trim(),
      models: [preferences.first, preferences.second],
      sampling,
      taken,
    });
  }

  /** Show the next pair, and have the one after it made meanwhile. */
  async next(counts) {
    if (!preferences.rater.trim()) {
      toast("Enter your name first: votes are kept under it.", "bad");
      document.getElementById("rater")?.focus();
      return;
    }
    this.busy = true;
    const ahead = this.ahead;
    this.ahead = null;
    if (!ahead || !this.pair) this.waiting();
    const told = await tried(() => ahead || this.fetch());
    this.busy = false;
    if (!told) {
      await this.setUp();
      return;
    }
    this.counts = counts || told.counts; // a pair that was fetched ahead was counted before the vote
    this.pair = told.pair;
    if (!this.pair) {
      this.done(told.is_left);
      return;
    }
    this.drawPair();
    this.ahead = this.fetch([this.pair.id]).catch(() => null);
  }

  waiting() {
    this.main.replaceChildren(
      h(
        "div.view",
        {},
        h("h1", {}, "Compare and vote"),
        empty(
          icon("compare"),
          "Two answers are being written …",
          h("p", { role: "status" }, "The first pair takes a moment; the next ones are made while you read."),
        ),
      ),
    );
  }

  done(isLeft) {
    this.main.replaceChildren(
      h(
        "div.view",
        {},
        h("h1", {}, "Compare and vote"),
        empty(
          icon("compare"),
          isLeft ? "The two answers are always the same" : "Nothing is left to compare",
          h(
            "p",
            {},
            isLeft
              ? "Raise the temperature, or compare two models that differ more."
              : this.counts.prompts
                ? "You have seen every pair of these two models."
                : "Add some prompts first: one a line is enough.",
          ),
          h(
            "div.row.centre",
            {},
            button("Back", { word: isLeft ? "Settings" : "Add prompts", kind: "main", onclick: () => this.setUp() }),
            h("a.btn", { href: "#/train" }, "Train on it"),
          ),
        ),
      ),
    );
  }

  drawPair() {
    const { counts } = this,
      side = (name, text, label) =>
        h(
          "article.side.card",
          { "aria-label": label },
          h("h2.label", {}, label),
          h("div.prose", { tabIndex: 0 }, text.trim() ? render(text) : h("em.soft", {}, "(empty)")),
        );
    this.why = h("textarea", {
      rows: 1,
      placeholder: "Why? (optional)",
      "aria-label": "Why",
      onkeydown: (event) => {
        if (event.key === "Escape") this.why.blur();
      },
    });
    const vote = (choice, word, key, kind = "") =>
      button(`${word} (${key})`, {
        word: [h("kbd", { "aria-hidden": "true" }, key), ` ${word}`],
        kind,
        onclick: () => this.vote(choice),
      });
    const total = counts.prompts || counts.pairs || 1;
    const progress = h("span");
    progress.style.width = `${Math.min(100, (100 * counts.mine) / total)}%`;
    this.main.replaceChildren(
      h(
        "div.view.voting",
        {},
        h(
          "div.row",
          {},
          h("h1.grow", {}, "Which answer is better?"),
          h("span.soft.small", { role: "status" }, `${counts.mine} done of ${total}`),
          button("Settings and summary", { name: "tune", onclick: () => this.setUp() }),
        ),
        h("div.bar", {}, progress),
        h(
          "div.asked.card",
          {},
          this.pair.prompt.map((one) =>
            h("p", {}, this.pair.prompt.length > 1 && h("strong.small.soft", {}, `${one.role} `), one.content),
          ),
        ),
        h("div.sides", {}, side("left", this.pair.left, "Left"), side("right", this.pair.right, "Right")),
        h(
          "div.votes",
          {},
          vote("left", "Left", "←", "main"),
          vote("tie", "Tie", "="),
          vote("right", "Right", "→", "main"),
          vote("skip", "Skip", "s"),
          button("Undo the last vote (u)", {
            word: [h("kbd", { "aria-hidden": "true" }, "u"), " Undo"],
            disabled: !this.cast.length,
            onclick: () => this.undo(),
          }),
          h("div.grow.why", {}, this.why),
        ),
      ),
    );
    this.main.querySelector(".voting").scrollIntoView({ block: "start" });
  }

  async vote(choice) {
    if (this.busy || !this.pair) return;
    this.busy = true;
    const sent = { id: newId(), pair: this.pair.id, rater: preferences.rater.trim(), choice, why: this.why.value.trim() || null };
    const told = await tried(() => again(() => post("/v1/compare/votes", sent)));
    this.busy = false;
    if (!told) return;
    this.cast.push(sent.id);
    await this.next(told.counts);
  }

  async undo() {
    const id = this.cast.at(-1);
    if (!id || this.busy) return;
    this.busy = true;
    const told = await tried(() => del(`/v1/compare/votes/${id}`));
    this.busy = false;
    if (!told) return;
    this.cast.pop();
    if (this.pair) this.ahead = Promise.resolve({ pair: this.pair, counts: told.counts });
    Object.assign(this, { pair: told.pair, counts: told.counts });
    this.drawPair();
    toast("The vote is deleted.");
  }

  key(event) {
    if (
      isTyping() ||
      event.ctrlKey ||
      event.metaKey ||
      event.altKey ||
      event.repeat ||
      !this.pair ||
      !this.main.querySelector(".voting")
    )
      return;
    const choice = { ArrowLeft: "left", ArrowRight: "right", "=": "tie", ArrowDown: "tie", s: "skip" }[event.key];
    if (choice) {
      event.preventDefault();
      this.vote(choice);
    }
    if (event.key === "u" || event.key === "Backspace") {
      event.preventDefault();
      this.undo();
    }
    if (event.key === "w") {
      event.preventDefault();
      this.why.focus();
    }
  }
}

/** Send a vote again when the connection failed: its id keeps it from counting twice. */
async function again(work) {
  for (let left = 2; ; left -= 1) {
    try {
      return await work();
    } catch (error) {
      if (!left || error.status) throw error;
      await new Promise((resolve) => setTimeout(resolve, 500));
    }
  }
}

const figure = (value, label, hint) =>
  h("div.figure-box", {}, h("strong", {}, String(value)), h("span.soft.small", {}, label), hint && h("small.soft", {}, hint));
