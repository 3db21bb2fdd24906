/** Train on it: comparisons become a better model in the background; then old and new are compared, blind. */

import { del, get, post } from "./api.js";
import { button, field, h, percent, svg, toast, tried } from "./dom.js";
import { loadModels, shared } from "./shared.js";

const PAUSE = 1500;
const NAMES = {
  "val/accuracy": "held-out comparisons told apart",
  "val/loss": "loss on held-out comparisons",
  "train/loss": "loss in training",
};

/** Draw the view. @param {HTMLElement} main */
export async function show(main) {
  const view = { main, timer: 0, state: "", isGone: false };
  await draw(view);
  return () => {
    view.isGone = true;
    clearTimeout(view.timer);
  };
}

async function draw(view) {
  const told = await tried(() => Promise.all([get("/v1/training"), get("/v1/compare/summary")]));
  if (!told || view.isGone) return;
  const [job, { counts, agreement, file }] = told;
  if (job.state === "done" && view.state && view.state !== "done") {
    await loadModels();
    toast(`${job.name} is trained and served.`);
  }
  view.state = job.state;
  const isBusy = ["running", "loading"].includes(job.state);
  view.main.replaceChildren(
    h(
      "div.view",
      {},
      h("h1", {}, "Train on it"),
      h(
        "p.soft",
        {},
        "Direct preference optimisation with a low-rank adapter, on every comparison so far. The old model stays as it is; the new one is served beside it.",
      ),
      gathered(counts, agreement, job.least),
      isBusy ? "" : form(view, job, counts, file),
      job.state === "none" ? "" : progress(view, job),
      job.state === "done" ? await contest(job) : "",
    ),
  );
  if (isBusy) view.timer = setTimeout(() => draw(view), PAUSE);
}

function gathered(counts, agreement, least) {
  const bar = h("span"),
    goal = Math.max(least, 100);
  bar.style.width = `${Math.min(100, (100 * counts.votes) / goal)}%`;
  const words =
    counts.votes < least
      ? `${least - counts.votes} more are needed to begin.`
      : counts.votes < goal
        ? "Enough to try; a hundred and more make a difference that one can see."
        : "A good number to learn from.";
  return h(
    "section.card",
    {},
    h("div.row", {}, h("h2.grow", {}, `${counts.votes} comparison${counts.votes === 1 ? "" : "s"}`), h("a.btn", { href: "#/compare" }, "Vote")),
    h("div.bar", { role: "img", "aria-label": `${counts.votes} of ${goal}` }, bar),
    h(
      "p.soft.small.after",
      {},
      words,
      counts.ties ? ` ${counts.ties} are ties.` : "",
      agreement.agreement !== null ? ` Raters agree on ${percent(agreement.agreement)} of ${agreement.pairs} pairs.` : "",
    ),
  );
}

function form(view, job, counts, file) {
  const models = shared.models.filter((one) => one.can.includes("complete") && job.models.includes(one.id));
  if (!models.length) return h("p.notice", {}, "None of these models can be trained here.");
  const model = h(
    "select",
    {},
    models.map((one) => h("option", { value: one.id, selected: one.id === job.model }, one.id)),
  );
  const number = (label, value, hint) => {
    const made = h("input", { type: "number", value, min: 0, step: "any" });
    return [made, field(label, made, hint)];
  };
  const [passes, passesField] = number("Passes", 3, "over the comparisons"),
    [beta, betaField] = number("Beta", 0.1, "larger: stays nearer"),
    [rank, rankField] = number("Rank", 8, "of the adapter"),
    [lr, lrField] = number("Learning rate", 0.0002, "larger: learns faster");
  const start = button("Train", {
    word: "Train",
    kind: "main",
    disabled: counts.votes < job.least,
    onclick: async () => {
      start.disabled = true;
      if (
        await tried(() =>
          post("/v1/training", {
            model: model.value,
            passes: Number(passes.value),
            beta: Number(beta.value),
            rank: Number(rank.value),
            lr: Number(lr.value),
          }),
        )
      )
        view.state = "running";
      await draw(view);
    },
  });
  return h(
    "section.card.stack",
    {},
    h("h2", {}, "A new model"),
    h("div.fields", {}, field("From", model), passesField, betaField, rankField, lrField),
    h(
      "div.row",
      {},
      start,
      h("span.soft.small", {}, "the same as ", h("code", {}, `stockpot dpo MODEL --data ${file.split("/").at(-1)}`)),
    ),
  );
}

function progress(view, job) {
  const words = {
    running: "is being trained",
    loading: "is being loaded",
    done: "is trained",
    failed: "could not be trained",
    stopped: "was stopped",
  }[job.state];
  const shown = Object.entries(NAMES).filter(([key]) => (job.curves?.[key] || []).length > 0);
  return h(
    "section.card",
    {},
    h(
      "div.row",
      {},
      h("h2.grow", {}, `${job.name} ${words}`),
      h("span.soft.small", { role: "status" }, `${Math.round(job.seconds)} s · ${job.comparisons} comparisons`),
      job.state === "running"
        ? button("Stop", {
            word: "Stop",
            onclick: async () => {
              await tried(() => del("/v1/training"));
              await draw(view);
            },
          })
        : "",
    ),
    shown.length
      ? h(
          "div.curves",
          {},
          shown.map(([key, label]) => curve(job.curves[key], label, key === "val/accuracy")),
        )
      : job.state === "running"
        ? h("p.soft", {}, "Reading the comparisons and asking the old model about them …")
        : "",
    job.error ? h("pre.error", { tabIndex: 0 }, job.error) : "",
    h("details.after", {}, h("summary.small", {}, "The command"), h("pre", { tabIndex: 0 }, job.command)),
  );
}

/** Draw a curve over the steps, with its last value in words. */
function curve(points, label, isShare) {
  const last = points.at(-1)[1],
    told = isShare ? percent(last) : last.toFixed(3);
  const [w, tall] = [260, 84],
    xs = points.map(([step]) => step),
    ys = points.map(([, value]) => value);
  const middle = (Math.min(...ys) + Math.max(...ys)) / 2,
    reach = Math.max(Math.max(...ys) - middle, 0.05); // so that noise in the third figure looks like noise
  const low = isShare ? 0 : middle - reach,
    high = isShare ? 1 : middle + reach,
    x0 = xs[0],
    span = xs.at(-1) - x0 || 1;
  const at = points.map(
    ([step, value]) =>
      `${(4 + ((w - 8) * (step - x0)) / span).toFixed(1)},${(tall - 6 - ((tall - 12) * (value - low)) / (high - low || 1)).toFixed(1)}`,
  );
  const drawn = svg(
    "svg",
    { viewBox: `0 0 ${w} ${tall}`, role: "img", "aria-label": `${label}: ${told} after ${xs.at(-1)} steps` },
    ...(isShare ? [svg("line", { x1: 4, x2: w - 4, y1: tall / 2, y2: tall / 2, class: "half" })] : []),
    at.length > 1
      ? svg("polyline", { points: at.join(" "), class: "line" })
      : svg("circle", { cx: at[0].split(",")[0], cy: at[0].split(",")[1], r: 3, class: "dot" }),
  );
  return h("figure.curve", {}, drawn, h("figcaption.small", {}, h("strong", {}, told), h("span.soft", {}, ` ${label}`)));
}

async function contest(job) {
  const told = await tried(() =>
    get(`/v1/compare/summary?first=${encodeURIComponent(job.model)}&second=${encodeURIComponent(job.name)}`),
  );
  const wins = told?.wins;
  const verdict = !wins
    ? "Nobody has compared them yet."
    : wins.low > 0.5
      ? "People prefer the new model."
      : wins.high < 0.5
        ? "People prefer the old model."
        : "That may still be chance: go on comparing.";
  return h(
    "section.card",
    {},
    h("h2", {}, "Old or new?"),
    wins
      ? h(
          "div.wins",
          {},
          h("strong.big", {}, percent(wins.value)),
          h(
            "span.soft",
            {},
            `of ${wins.n} comparisons won by ${job.name} (95 % interval ${percent(wins.low)} to ${percent(wins.high)}; ties count half)`,
          ),
          interval(wins),
        )
      : "",
    h("p", {}, verdict),
    button("Compare them blind", {
      word: "Compare them blind",
      kind: "main",
      onclick: () => {
        shared.compare = [job.model, job.name];
        location.hash = "#/compare";
      },
    }),
  );
}

function interval(wins) {
  const x = (value) => (4 + 292 * value).toFixed(1);
  return svg(
    "svg",
    { viewBox: "0 0 300 26", class: "interval", role: "img", "aria-label": `from ${percent(wins.low)} to ${percent(wins.high)}` },
    svg("line", { x1: 4, x2: 296, y1: 13, y2: 13, class: "axis" }),
    svg("line", { x1: 150, x2: 150, y1: 3, y2: 23, class: "half" }),
    svg("line", { x1: x(wins.low), x2: x(wins.high), y1: 13, y2: 13, class: "span" }),
    svg("circle", { cx: x(wins.value), cy: 13, r: 5, class: "dot" }),
  );
}
