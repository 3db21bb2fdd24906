"""A report as one HTML page: every figure with its interval, and every prompt and answer behind it, to be browsed.

The page needs no network. Its script is ours and inline, named by its hash in the page's policy; what models and data sets wrote
reaches it as JSON and is shown as text, never as markup.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stockpot.durable import write_atomically
from stockpot.judge.harness import LOWER, Report, compare, reading
from stockpot.judge.metrics import in_figures
from stockpot.judge.scoring import TWINS, Answer, Row
from stockpot.judge.strict import allowing_its_own

__all__ = ["page_of", "write_page"]

MOST_SHOWN = 2_000  # answers of a task in the page; all are in report.json


def write_page(folder: Path, report: Report, first: Report | None = None) -> Path:
    """Write ``report.html`` beside ``report.json``; with the first model's report, the difference from it as well."""
    path = folder / "report.html"
    write_atomically(path, page_of(report, first))
    return path


def page_of(report: Report, first: Report | None = None) -> str:
    """Draw a report."""
    tasks = {
        task: [_shown(answer) for answer in answers[:MOST_SHOWN]] for task, answers in report.answers.items()
    }
    data = json.dumps(tasks, ensure_ascii=True).replace(
        "<", "\\u003c"
    )  # no text can close the script element
    difference = "" if first is None else _difference(first, compare(first, report))
    remarks = "".join(f"<p>{html.escape(line)}</p>" for line in [*report.not_judged(), *report.remarks])
    kinds = f"<h2>By sort of question</h2>{_table(report.kinds)}" if report.kinds else ""
    cut = [task for task, answers in report.answers.items() if len(answers) > MOST_SHOWN]
    more = (
        f"<p>The first {MOST_SHOWN:,} of {', '.join(map(html.escape, cut))}; all are in report.json.</p>"
        if cut
        else ""
    )
    body = (
        f"<h1>{html.escape(report.model)}</h1><p>Questions put as {html.escape(report.wording)}. Intervals are 95 %; chance "
        "is what guessing scores; a step is the least by which a share can change, 1/n.</p>"
        f"{_table(report.rows)}{remarks}{difference}{kinds}<h2>Every prompt and answer</h2>{more}{BROWSER}"
    )
    parts = {"TITLE": html.escape(report.model), "BODY": body, "DATA": data}
    return re.sub(
        "@(TITLE|BODY|DATA)@", lambda mark: parts[mark[1]], PAGE
    )  # in one pass: a text may hold a mark


def _shown(answer: Answer) -> dict[str, Any]:
    item = answer.item
    choices = [
        {
            "text": text,
            "worth": worth,
            "log_prob": None if number >= len(answer.log_probs) else answer.log_probs[number],
        }
        for number, (text, worth) in enumerate(zip(item.choices, item.worth, strict=True))
    ]
    return {
        "id": item.id,
        "prompt": item.prompt if item.prompt else " … ".join(item.contexts) or item.question,
        "right": item.answer,
        "choice": answer.choice,
        "reply": answer.reply,
        "choices": choices,
        "scores": dict(answer.scores),
        "note": answer.note,
        "is_right": answer.is_right,
    }


def _table(rows: Sequence[Row]) -> str:
    lines = []
    for row in rows:
        e = row.estimate
        chance = "–" if e.chance is None else f"{e.chance:.2f}"
        between = f"{in_figures(e.low)} to {in_figures(e.high)}" if e.has_interval else "–"
        step = "–" if row.metric in (*TWINS, *LOWER) else f"{e.resolution:.4f}"
        lines.append(
            f"<tr><td>{html.escape(row.task)}</td><td>{html.escape(row.metric)}</td><td class=n>{in_figures(e.value)}</td>"
            f"<td class=n>{between}</td><td class=n>{chance}</td><td class=n>{e.n}</td>"
            f"<td class=n>{step}</td></tr>"
        )
    heads = "<th>task</th><th>measure</th><th>score</th><th>95 % interval</th><th>chance</th><th>items</th><th>step</th>"
    return f"<div class=scroll><table><thead><tr>{heads}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"


def _difference(first: Report, rows: Sequence[Row]) -> str:
    lines = []
    for row in rows:
        e, p = row.estimate, "–" if row.p is None else f"{row.p:.3g}"
        between = f"{e.low:+.3f} to {e.high:+.3f}" if e.has_interval else "–"
        lines.append(
            f"<tr><td>{html.escape(row.task)}</td><td>{html.escape(row.metric)}</td><td class=n>{e.value:+.3f}</td>"
            f"<td class=n>{between}</td><td class=n>{p}</td><td class=n>{e.n}</td>"
            f"<td>{reading(row)}</td></tr>"
        )
    names = ("task", "measure", "difference", "95 % interval (paired)", "p (McNemar)", "items", "which is")
    heads = "".join(f"<th>{name}</th>" for name in names)
    return (
        f"<h2>Minus {html.escape(first.model)}, the same questions</h2><div class=scroll><table><thead><tr>{heads}</tr></thead>"
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


BROWSER = """<p><label>task <select id="task"></select></label> <label>show <select id="which"><option value="all">all</option>
<option value="right">right</option><option value="wrong">wrong</option></select></label>
<label>find <input id="find" type="search" autocomplete="off"></label> <span id="count" role="status"></span></p>
<div id="list"></div><p><button id="more" type="button">more</button></p>"""


PAGE = allowing_its_own("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; script-src @SCRIPT@; style-src @STYLE@">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>@TITLE@</title>
<style>
:root { color-scheme: light dark; --line: #8884; --soft: #8881; --good: #2a8; --bad: #c55; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 1.5rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; overflow-wrap: anywhere; } h2 { font-size: 1.1rem; margin-top: 1.8rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .2rem .7rem; border-bottom: 1px solid var(--line); } .n { text-align: right; }
.scroll { overflow-x: auto; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: var(--soft); padding: .5rem; border-radius: 4px;
  margin: .3rem 0; }
details { border-left: 4px solid var(--line); padding: .2rem .7rem; margin: .4rem 0; }
details.right { border-color: var(--good); } details.wrong { border-color: var(--bad); }
summary { cursor: pointer; overflow-wrap: anywhere; } label { margin-right: 1rem; }
</style>
</head>
<body>
@BODY@
<script type="application/json" id="data">@DATA@</script>
<script>
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const by = id => document.getElementById(id);
const STEP = 50;
let shown = STEP;
const make = (tag, text, kind) => {
  const one = document.createElement(tag);
  if (text !== undefined) one.textContent = text;
  if (kind) one.className = kind;
  return one;
};
for (const name of Object.keys(data)) by("task").append(make("option", name));
const number = v => v == null ? "–" : Number(v).toFixed(3);
function card(a) {
  const state = a.is_right == null ? "" : a.is_right ? "right" : "wrong";
  const box = make("details", undefined, state);
  const said = a.choice ?? a.reply;
  box.append(make("summary", (state ? state + ": " : "") + a.id + " — " + (said || "").slice(0, 120)));
  box.addEventListener("toggle", () => {
    if (box.childElementCount > 1) return;
    box.append(make("pre", a.prompt));
    for (const c of a.choices) {
      const mark = (c.text === a.choice ? "→ " : "   ") + (c.worth > 0 ? "✓ " : "   ");
      box.append(make("pre", mark + number(c.log_prob) + "  " + c.text));
    }
    if (a.reply) box.append(make("p", "It wrote:"), make("pre", a.reply));
    if (a.right) box.append(make("p", "Right:"), make("pre", a.right));
    if (a.note) box.append(make("p", a.note));
    box.append(make("p", Object.entries(a.scores).map(([k, v]) => k + " " + number(v)).join(", ")));
  });
  return box;
}
function draw() {
  const which = by("which").value, wanted = by("find").value.toLowerCase();
  const all = data[by("task").value] || [];
  const some = all.filter(a => (which === "all" || a.is_right === (which === "right")) &&
    (!wanted || (a.id + a.prompt + a.reply + a.right).toLowerCase().includes(wanted)));
  by("list").replaceChildren(...some.slice(0, shown).map(card));
  by("count").textContent = some.length + " of " + all.length;
  by("more").hidden = shown >= some.length;
}
for (const id of ["task", "which", "find"]) by(id).addEventListener("input", () => { shown = STEP; draw(); });
by("more").addEventListener("click", () => { shown += STEP; draw(); });
draw();
</script>
</body>
</html>
""")
