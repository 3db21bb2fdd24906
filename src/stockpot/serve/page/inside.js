/**
 * Look inside: every token with its probability, what else could stand there, what each layer would have said, where each head
 * looks; one token at a time, one token changed. The text is its ids here, so that what is shown is what the model read.
 */

import { post } from "./api.js";
import { button, field, h, isTyping, percent, tried } from "./dom.js";
import { meter, told } from "./pieces.js";
import { chosenModel, modelSelect, shared } from "./shared.js";
import { preferences } from "./store.js";

const EXAMPLE = { decoder: "The cat sat on the mat.", encoder: "The cat ___ on the mat." };

/** Draw the view. @param {HTMLElement} main */
export async function show(main) {
  const view = new InsideView(main);
  await view.begin();
  return () => document.removeEventListener("keydown", view.onkey);
}

class InsideView {
  constructor(main) {
    this.main = main;
    this.model = shared.look?.model || chosenModel();
    this.past = [];
    this.place = null;
    this.layer = null;
    this.head = "mean";
    this.colour = "probability";
    this.asked = 0;
    this.onkey = (event) => this.key(event);
    document.addEventListener("keydown", this.onkey);
  }

  get shape() {
    return shared.models.find((one) => one.id === this.model)?.shape;
  }

  async begin() {
    const handed = shared.look;
    shared.look = null;
    this.draw();
    if (handed)
      await this.read({
        messages: handed.messages.map((one) => ({
          role: one.role,
          content: typeof one.content === "string" ? one.content : one.content[0].text,
        })),
      });
    else await this.readText();
  }

  draw() {
    const models = shared.models.filter((one) => one.shape !== "encoder_decoder");
    this.input = h("textarea", {
      rows: 2,
      id: "look-text",
      value: this.input?.value ?? EXAMPLE[this.shape] ?? EXAMPLE.decoder,
      onkeydown: (event) => {
        if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) this.readText();
      },
    });
    this.strip = h("div.strip", { role: "group", "aria-label": "Tokens: arrow keys move, Enter opens" });
    this.panel = h("div.panels");
    this.status = h("p.soft.small", { role: "status" });
    this.main.replaceChildren(
      h(
        "div.view",
        {},
        h("h1", {}, "Look inside"),
        h(
          "p.soft",
          {},
          "What the model expected at every token, what each layer would have said there, and where each head looked.",
        ),
        h(
          "div.card.stack",
          {},
          h(
            "div.row.ends",
            {},
            h("div.grow", {}, field("Text", this.input)),
            field(
              "Model",
              modelSelect(
                this.model,
                (name) => {
                  this.model = preferences.model = name;
                  this.past = [];
                  this.input = null;
                  this.draw();
                  this.readText();
                },
                (one) => models.includes(one),
              ),
            ),
            button("Read it (Ctrl Enter)", { word: "Read", kind: "main", onclick: () => this.readText() }),
          ),
        ),
        h("div.card.tokens", {}, this.bar(), this.strip, this.status),
        this.panel,
      ),
    );
  }

  bar() {
    const colours = h(
      "select",
      {
        "aria-label": "What the colours show",
        onchange: (event) => {
          this.colour = event.target.value;
          this.paint();
        },
      },
      [
        ["probability", "colour: probability"],
        ["attention", "colour: where it looks"],
        ["tokens", "colour: the tokenizer's pieces"],
      ].map(([value, text]) => h("option", { value, selected: value === this.colour }, text)),
    );
    this.colours = colours;
    const isDecoder = this.shape === "decoder";
    return h(
      "div.row.bar-row",
      {},
      colours,
      h("span.grow"),
      ...(isDecoder
        ? [
            button("Take the last step back (b)", { name: "left", word: "Back", onclick: () => this.back() }),
            button("Write the likeliest next token (s)", { name: "right", word: "Step", onclick: () => this.go(1) }),
            button("Write 16 tokens", { word: "Go on 16", onclick: () => this.go(16) }),
          ]
        : []),
    );
  }

  readText() {
    const text = this.input.value;
    this.past = [];
    if (!text.trim()) return undefined;
    if (this.shape === "encoder" && text.includes("___")) return this.fill(text);
    return this.read({ text });
  }

  /** Read something and show it. */
  async read(what, place) {
    const asked = ++this.asked;
    this.status.textContent = "Reading …";
    const told = await tried(() => post("/v1/look", { model: this.model, ...what }));
    if (asked !== this.asked || !told) {
      if (asked === this.asked) this.status.textContent = "";
      return;
    }
    this.told = told;
    this.found = null;
    this.ids = told.tokens.map((one) => one.id);
    this.layer ??= told.layers - 1;
    this.layer = Math.min(this.layer, told.layers - 1);
    if (this.head >= told.heads) this.head = "mean";
    this.place = Math.max(0, Math.min(place ?? this.ids.length - 1, this.ids.length - 1));
    const known = told.tokens.filter((one) => one.probability !== null);
    const nats = known.reduce((sum, one) => sum - Math.log(Math.max(one.probability, 1e-6)), 0) / (known.length || 1);
    this.status.textContent = `${this.ids.length} tokens${known.length ? `; ${nats.toFixed(2)} nats a token, as if it chose among ${Math.exp(nats).toFixed(nats > 2.3 ? 0 : 1)} equally likely ones` : ""}.`;
    this.strip.replaceChildren(...told.tokens.map((one, index) => this.token(one, index)));
    await this.look();
  }

  token(one, index) {
    const shown = one.text.replace(/\n/g, "↵") || "∅";
    return h(
      `button.token${one.is_special ? ".special" : ""}${index < this.told.prompt_tokens ? ".given" : ""}`,
      {
        type: "button",
        tabIndex: -1,
        title: `${one.text} · id ${one.id}${one.probability === null ? "" : ` · ${percent(one.probability, 1)}`}`,
        onclick: () => {
          this.place = index;
          this.look();
        },
      },
      shown,
    );
  }

  /** Look at one place: layers and heads. */
  async look() {
    const asked = ++this.asked;
    this.found = null;
    this.paint();
    const place = this.place;
    const found = await tried(() => post("/v1/look/token", { model: this.model, ids: this.ids, place }));
    if (asked !== this.asked || !found) return;
    this.found = { layers: found.layers, attention: Uint8Array.from(atob(found.attention), (sign) => sign.charCodeAt(0)) };
    this.paint();
    this.drawPanels();
  }

  /** Where a head looks from the chosen place, 0 to 1 a token. */
  looks(layer, head) {
    const { heads } = this.told,
      n = this.ids.length,
      all = this.found?.attention;
    if (!all) return new Array(n).fill(0);
    const row = (h) => all.subarray((layer * heads + h) * n, (layer * heads + h + 1) * n);
    if (head !== "mean") return Array.from(row(+head), (one) => one / 255);
    const sum = new Array(n).fill(0);
    for (let h = 0; h < heads; h += 1)
      row(h).forEach((one, k) => {
        sum[k] += one / 255 / heads;
      });
    return sum;
  }

  paint() {
    if (!this.ids) return; // gaps are shown, or nothing yet
    const looks = this.looks(this.layer, this.head);
    [...this.strip.children].forEach((made, index) => {
      const one = this.told.tokens[index];
      made.setAttribute("aria-pressed", String(index === this.place));
      made.tabIndex = index === this.place ? 0 : -1;
      made.dataset.piece = this.colour === "tokens" ? String(index % 5) : "";
      made.style.setProperty("--look", this.colour === "attention" ? String(Math.min(1, looks[index]).toFixed(3)) : "0");
      made.style.setProperty(
        "--hue",
        one.probability === null ? "0" : String(Math.round(130 * Math.max(0, 1 + Math.log10(one.probability + 1e-4) / 4))),
      );
      made.classList.toggle("rated", this.colour === "probability" && one.probability !== null);
    });
  }

  drawPanels() {
    if (!this.found) return; // it is on its way
    const one = this.told.tokens[this.place];
    this.panel.replaceChildren(this.alternatives(one), this.layers(one), this.attention());
  }

  alternatives(one) {
    const isDecoder = this.shape === "decoder";
    return h(
      "section.card",
      {},
      h(
        "h2",
        {},
        h("span.piece", {}, told(one.text)),
        h("span.soft", {}, one.probability === null ? " was given" : ` ${percent(one.probability, 1)}`),
      ),
      one.alternatives.length
        ? h(
            "p.soft.small",
            {},
            isDecoder
              ? "What could stand here. Choose one to go on from there."
              : "What could stand here, the token itself in view.",
          )
        : h("p.soft.small", {}, "Nothing stands before the first token, so nothing predicts it."),
      h(
        "ol.bars",
        {},
        one.alternatives.map(([text, probability, id]) =>
          h(
            "li",
            {},
            h(
              `button.choice${id === one.id ? ".is" : ""}`,
              {
                type: "button",
                disabled: !isDecoder || id === one.id,
                title: id === one.id ? "stands here" : "put it here and go on",
                onclick: () => this.change(id),
              },
              h("span.piece", {}, told(text)),
              meter(probability),
              h("span.figure", {}, percent(probability, 1)),
            ),
          ),
        ),
      ),
    );
  }

  layers(one) {
    if (!this.found.layers.length)
      return h("section.card", {}, h("h2", {}, "Layer by layer"), h("p.soft.small", {}, "Nothing is predicted here."));
    return h(
      "section.card",
      {},
      h("h2", {}, "Layer by layer"),
      h("p.soft.small", {}, "Had the model ended after this layer, it would have said:"),
      h(
        "div.scroll",
        { tabIndex: 0, role: "region", "aria-label": "What each layer would have said" },
        h(
          "table.lens",
          {},
          h(
            "thead",
            {},
            h(
              "tr",
              {},
              h("th", {}, "layer"),
              h("th.right", {}, h("span.piece", {}, told(one.text))),
              h("th", {}, "likeliest"),
              h("th", {}, "then"),
            ),
          ),
          h(
            "tbody",
            {},
            this.found.layers
              .map((layer, index) =>
                h(
                  `tr${index - 1 === this.layer ? ".here" : ""}`,
                  {},
                  h("th", { scope: "row" }, index === 0 ? "input" : String(index)),
                  h("td.right", {}, percent(layer.probability, 1)),
                  h(
                    "td",
                    {},
                    h("span.piece", {}, told(layer.alternatives[0][0])),
                    h("small.soft", {}, ` ${percent(layer.alternatives[0][1])}`),
                  ),
                  h(
                    "td.soft",
                    {},
                    layer.alternatives.slice(1, 3).map(([text]) => h("span.piece.dim", {}, told(text))),
                  ),
                ),
              )
              .reverse(),
          ),
        ),
      ),
    );
  }

  attention() {
    const { layers, heads } = this.told;
    const pick = (label, values, chosen, take) =>
      field(
        label,
        h(
          "select",
          { onchange: (event) => take(event.target.value) },
          values.map(([value, text]) => h("option", { value, selected: String(value) === String(chosen) }, text)),
        ),
      );
    const turn = () => {
      this.colour = "attention";
      this.colours.value = "attention";
      this.paint();
      this.drawPanels();
    };
    const grid = h("div.heads", { "aria-hidden": "true" });
    grid.style.setProperty("--heads", String(heads));
    for (let layer = layers - 1; layer >= 0; layer -= 1)
      for (let head = 0; head < heads; head += 1) {
        const looks = this.looks(layer, head),
          top = looks.reduce((best, value, k) => (value > looks[best] ? k : best), 0);
        const cell = h(`span.head${layer === this.layer && String(head) === String(this.head) ? ".here" : ""}`, {
          title: `layer ${layer + 1}, head ${head + 1}: mostly at “${this.told.tokens[top].text}”`,
          onclick: () => {
            this.layer = layer;
            this.head = head;
            turn();
          },
        });
        cell.style.setProperty("--look", String(looks[this.best(looks)].toFixed(2)));
        grid.append(cell);
      }
    const looks = this.looks(this.layer, this.head);
    const order = looks
      .map((value, k) => [value, k])
      .sort((a, b) => b[0] - a[0])
      .slice(0, 5)
      .filter(([value]) => value > 0.005);
    return h(
      "section.card",
      {},
      h("h2", {}, "Where it looks"),
      h("p.soft.small", {}, "From the chosen token, in one layer and head; a darker square is a head with a sharper look."),
      h(
        "div.row.ends",
        {},
        pick(
          "Layer",
          Array.from({ length: layers }, (_, index) => [index, String(index + 1)]),
          this.layer,
          (value) => {
            this.layer = +value;
            turn();
          },
        ),
        pick(
          "Head",
          [["mean", "mean of all"], ...Array.from({ length: heads }, (_, index) => [index, String(index + 1)])],
          this.head,
          (value) => {
            this.head = value;
            turn();
          },
        ),
      ),
      h(
        "ol.bars",
        {},
        order.map(([value, k]) =>
          h(
            "li",
            {},
            h(
              "div.choice",
              {},
              h("span.piece", {}, told(this.told.tokens[k].text)),
              meter(value),
              h("span.figure", {}, percent(value)),
            ),
          ),
        ),
      ),
      grid,
    );
  }

  best(looks) {
    return looks.reduce((best, value, k) => (value > looks[best] ? k : best), 0);
  }

  // --- going on ---

  /** Put another token in and forget what followed. */
  change(id) {
    this.past.push(this.ids);
    this.read({ ids: [...this.ids.slice(0, this.place), id] });
  }

  async go(count) {
    if (!this.ids || this.shape !== "decoder") return;
    const told = await tried(() => post("/v1/look/continue", { model: this.model, ids: this.ids, max_tokens: count }));
    if (!told) return;
    this.past.push(this.ids);
    await this.read({ ids: told.ids });
  }

  back() {
    const ids = this.past.pop() || (this.ids?.length > 1 ? this.ids.slice(0, -1) : null);
    if (ids) this.read({ ids });
  }

  /** Show what an encoder would put into the gaps of a text. */
  async fill(text) {
    const asked = ++this.asked;
    const told_ = await tried(() => post("/v1/look/fill", { model: this.model, text }));
    if (asked !== this.asked || !told_) return;
    this.ids = null;
    this.strip.replaceChildren();
    this.status.textContent = told_.gaps.length === 1 ? "One gap:" : `${told_.gaps.length} gaps:`;
    this.panel.replaceChildren(
      ...told_.gaps.map((gap, index) =>
        h(
          "section.card",
          {},
          h("h2", {}, `Gap ${index + 1}`),
          h("p.soft.small", {}, "Choose a word to look inside the finished text."),
          h(
            "ol.bars",
            {},
            gap.map((one) =>
              h(
                "li",
                {},
                h(
                  "button.choice",
                  {
                    type: "button",
                    onclick: () => {
                      let at = -1;
                      this.input.value = text.replace(/___/g, (gap_) => (++at === index ? one.token.trim() : gap_));
                      this.readText();
                    },
                  },
                  h("span.piece", {}, told(one.token)),
                  meter(one.probability),
                  h("span.figure", {}, percent(one.probability, 1)),
                ),
              ),
            ),
          ),
        ),
      ),
    );
  }

  key(event) {
    if (isTyping() || event.ctrlKey || event.metaKey || event.altKey || !this.ids) return;
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (step) {
      event.preventDefault();
      this.place = Math.max(0, Math.min(this.ids.length - 1, this.place + step));
      this.look();
      this.strip.children[this.place].focus();
    } else if (event.key === "s") this.go(1);
    else if (event.key === "b") this.back();
  }
}
