/**
 * Report: where each model comes from, run by run, and the report of the job that made it. Only plain elements come from the server
 * (and only such are built); drawings become images, in which nothing can run.
 */

import { get } from "./api.js";
import { button, h, icon, tried } from "./dom.js";
import { empty } from "./shared.js";

const KEPT = new Set(
  "h1 h2 h3 h4 p ul ol li table thead tbody tr th td code pre figure figcaption details summary strong em b i small dl dt dd blockquote hr br div span section article".split(
    " ",
  ),
);

/** Draw the view. @param {HTMLElement} main */
export async function show(main) {
  const told = await tried(() => get("/v1/reports"));
  if (!told) return undefined;
  const opened = h("section");
  const open = async (name) => {
    const report = await tried(() => get(`/v1/reports/${encodeURIComponent(name)}`));
    if (!report) return;
    opened.replaceChildren(
      h("div.row.report-head", {}, h("h2.grow", {}, `Report of ${name}`), h("small.soft", {}, report.path)),
      h("div.card.prose.report", {}, build(report.content)),
    );
  };
  const openBelow = async (name) => {
    await open(name);
    opened.scrollIntoView({ behavior: "smooth", block: "start" });
  };
  main.replaceChildren(
    h(
      "div.view",
      {},
      h("h1", {}, "Report"),
      h("p.soft", {}, "Where each model comes from, and what each step of its making added."),
      told.models.length
        ? h(
            "div.stack",
            {},
            told.models.map((one) => model(one, openBelow)),
          )
        : empty(icon("report"), "No model is served"),
      opened,
    ),
  );
  const first = told.models.find((one) => one.has_report);
  if (first) await open(first.name);
  return undefined;
}

function model(one, open) {
  const size =
    one.parameters > 1e6
      ? `${(one.parameters / 1e6).toFixed(one.parameters > 1e7 ? 0 : 1)} million parameters`
      : one.parameters > 0
        ? `${one.parameters.toLocaleString("en")} parameters`
        : "";
  return h(
    "section.card",
    {},
    h(
      "div.row",
      {},
      h("h2.grow", {}, one.name, h("small.soft", {}, size && ` ${size}`)),
      one.has_report ? button("Open the report", { word: "Open the report", onclick: () => open(one.name) }) : "",
    ),
    one.lineage.length
      ? h(
          "ol.line",
          {},
          one.lineage.map((run) =>
            h(
              "li",
              {},
              h("strong", {}, run.stage || run.name),
              h(
                "span.soft.small",
                {},
                [run.status, when(run.ended || run.started), run.seed !== undefined ? `seed ${run.seed}` : ""]
                  .filter(Boolean)
                  .map((text) => ` · ${text}`)
                  .join(""),
              ),
              run.data.length ? h("div.small.soft", {}, `data: ${run.data.join(", ")}`) : "",
              h(
                "details",
                {},
                h("summary.small", {}, "folder and command"),
                h("pre.small", { tabIndex: 0 }, [run.path, run.command].filter(Boolean).join("\n")),
              ),
            ),
          ),
        )
      : h(
          "p.soft.small",
          {},
          one.source
            ? `Loaded from ${one.source}; there is no run folder behind it.`
            : "Nothing is known of where it comes from.",
        ),
  );
}

const when = (text) => {
  const date = new Date(text);
  return Number.isNaN(date.getTime()) ? "" : date.toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" });
};

/**
 * Turn a report into nodes: the server sends texts, [element, class, …children], and ["svg", label, drawing].
 * @param {any[]} content
 */
export function build(content, into = document.createDocumentFragment()) {
  for (const one of content) {
    if (typeof one === "string") into.append(one);
    else if (one[0] === "svg")
      into.append(h("img", { alt: one[1], src: `data:image/svg+xml;charset=utf-8,${encodeURIComponent(withName(one[2]))}` }));
    else if (KEPT.has(one[0])) into.append(build(one.slice(2), element(one[0] === "h1" ? "h2" : one[0], one[1])));
  }
  return into;
}

function element(tag, name) {
  const made = document.createElement(tag);
  if (name === "number") made.className = "right";
  if (name === "scroll" || tag === "pre") made.tabIndex = 0;
  if (name === "scroll") {
    made.className = "scroll";
    made.setAttribute("role", "region");
    made.setAttribute("aria-label", "table");
  }
  return made;
}

/** An image needs to be told that it is SVG. */
const withName = (drawing) =>
  drawing.includes("xmlns=") ? drawing : drawing.replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"');
