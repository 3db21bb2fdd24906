"""Turn the figures of a cook into one self-contained HTML page.

The page needs no network and no script: charts are drawn with Altair and embedded as SVG, so it opens from disk, prints,
and follows the reader's light or dark setting. Every figure shown is in the JSON beside it; this file computes none.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import altair as alt
import jinja2

from stockpot.durable import write_atomically
from stockpot.judge.drawing import COLOURS, INK, legend, svg

__all__ = ["curve_chart", "panel_chart", "path_chart", "score_chart", "write_report"]


def curve_chart(series: Mapping[str, Sequence[tuple[float, float]]], *, x: str, y: str, title: str) -> str:
    """Draw lines over a common axis; returns SVG.

    Args:
        series: name to its (x, y) points.
        x: what the horizontal axis shows, with its unit.
        y: the same for the vertical axis.
        title: what a screen reader should say.
    """
    shown = {name: list(_finite(points)) for name, points in series.items()}
    rows = [{"x": a, "y": b, "series": name} for name, points in shown.items() for a, b in points]
    scale, names = alt.Scale(domain=list(series), range=COLOURS), legend(list(series))
    chart = (
        alt.Chart(alt.InlineData(values=rows))
        .mark_line(strokeWidth=2, point=_has_lone(shown.values()))
        .encode(
            x=alt.X("x:Q", title=x),
            y=alt.Y("y:Q", title=y, scale=alt.Scale(zero=False)),
            color=alt.Color("series:N", title=None, scale=scale, legend=names),
        )
    )
    return svg(chart.properties(width=560, height=230), title)


def path_chart(
    paths: Mapping[str, Sequence[tuple[float, float]]],
    ends: Sequence[Mapping[str, Any]],
    *,
    x: str,
    y: str,
    title: str,
) -> str:
    """Draw paths through a plane, each point joined to the next, and where they end with 95 % intervals; returns SVG.

    Args:
        paths: name to its (x, y) points in order.
        ends: mappings with ``series``, ``x``, ``y``, ``low`` and ``high``.
        x: what the horizontal axis shows, with its unit.
        y: the same for the vertical axis.
        title: what a screen reader should say.
    """
    rows = [
        {"x": a, "y": b, "series": name, "at": place}
        for name, points in paths.items()
        for place, (a, b) in enumerate(_finite(points))
    ]
    scale, names = alt.Scale(domain=list(paths), range=COLOURS), legend(list(paths))
    colour = alt.Color("series:N", title=None, scale=scale, legend=names)
    across, up = alt.X("x:Q", title=x), alt.Y("y:Q", title=y, scale=alt.Scale(zero=False))
    base = alt.Chart(alt.InlineData(values=rows))
    lines = base.mark_line(strokeWidth=2, point=True).encode(x=across, y=up, color=colour, order="at:Q")
    last = alt.Chart(alt.InlineData(values=[dict(row) for row in ends]))
    intervals = last.mark_rule(strokeWidth=3).encode(x=across, y=alt.Y("low:Q"), y2="high:Q", color=colour)
    dots = last.mark_point(filled=True, size=120).encode(x=across, y=up, color=colour)
    return svg(alt.layer(lines, intervals, dots).properties(width=560, height=260), title)


def panel_chart(panels: Mapping[str, Sequence[tuple[float, float]]], *, x: str, title: str) -> str:
    """Draw one small curve a panel, side by side, each with its own scale; returns SVG.

    Args:
        panels: what a panel shows, with its unit, to its (x, y) points.
        x: what the horizontal axes show.
        title: what a screen reader should say.
    """
    shown = {name: list(_finite(points)) for name, points in panels.items()}
    charts = [
        alt.Chart(alt.InlineData(values=[{"x": a, "y": b} for a, b in points]))
        .mark_line(strokeWidth=2, color=COLOURS[place % len(COLOURS)], point=_has_lone([points]))
        .encode(x=alt.X("x:Q", title=x), y=alt.Y("y:Q", title=name, scale=alt.Scale(zero=False)))
        .properties(width=240, height=130)
        for place, (name, points) in enumerate(shown.items())
    ]
    return svg(alt.concat(*charts, columns=2), title)


def score_chart(rows: Sequence[Mapping[str, Any]], *, title: str) -> str:
    """Draw scores with their 95 % intervals, one line a task and one colour a model; returns SVG.

    Args:
        rows: mappings with ``task``, ``model``, ``value``, ``low``, ``high`` and ``chance`` (number or None).
        title: what a screen reader should say.
    """
    models = list(dict.fromkeys(row["model"] for row in rows))
    base = alt.Chart(alt.InlineData(values=[dict(row) for row in rows]))
    task = alt.Y("task:N", title=None, sort=None)
    offset = alt.YOffset("model:N", sort=models)
    scale = alt.Scale(domain=models, range=COLOURS)
    colour = alt.Color("model:N", title=None, sort=models, scale=scale, legend=legend(models))
    domain = alt.Scale(domain=[0, 1])
    intervals = base.mark_rule(strokeWidth=2).encode(
        x=alt.X("low:Q", title="share right, with 95 % interval", scale=domain),
        x2="high:Q",
        y=task,
        yOffset=offset,
        color=colour,
    )
    points = base.mark_point(filled=True, size=60).encode(x="value:Q", y=task, yOffset=offset, color=colour)
    layers = [intervals, points]
    guessing = [{"task": row["task"], "chance": row["chance"]} for row in rows if row.get("chance")]
    if guessing:
        chance = alt.Chart(alt.InlineData(values=guessing))
        layers.append(chance.mark_tick(color=INK, thickness=2, size=26).encode(x="chance:Q", y=task))
    drawn = alt.layer(*layers).properties(width=460, height=alt.Step(18))
    return svg(drawn.properties(padding={"left": 40, "right": 5, "top": 5, "bottom": 5}), title)


def _has_lone(series: Iterable[Sequence[tuple[float, float]]]) -> bool:
    """Tell whether some series is a single point, of which a line shows nothing."""
    return any(len(points) == 1 for points in series)


def _finite(points: Sequence[tuple[float, float]]) -> Iterator[tuple[float, float]]:
    """Leave out what a run logged of a step that was passed over: it has no place, and JSON no name for it."""
    return ((x, y) for x, y in points if math.isfinite(y))


def write_report(
    folder: Path,
    figures: Mapping[str, Any],
    charts: Sequence[tuple[str, str, str]],
    drawn: Mapping[str, str] | None = None,
) -> Path:
    """Write ``report.html`` and ``report.json`` into a folder, each whole or not at all.

    Args:
        folder: where to write.
        figures: plain values; see the template below for the keys it shows.
        charts: (heading, SVG, sentence under it) in the order of the page.
        drawn: SVG that belongs to a table: ``ledger``, ``lineage``.

    Returns:
        The path of the page.
    """
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    digest = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()  # no other style may apply
    page = environment.from_string(PAGE).render(
        figures=figures, charts=charts, drawn=drawn or {}, style=STYLE, digest=digest
    )
    for name, text in (
        ("report.json", json.dumps(figures, ensure_ascii=False, indent=1)),
        ("report.html", page),
    ):
        write_atomically(folder / name, text)
    return folder / "report.html"


STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; }
body { font: 16px/1.55 system-ui, sans-serif; max-width: 74rem; margin: 2rem auto; padding: 0 1rem; }
h1 { line-height: 1.2; } h2 { margin-top: 2.4rem; border-bottom: 1px solid var(--line); padding-bottom: .2rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .3rem .6rem; border-bottom: 1px solid var(--line); vertical-align: top; }
td.number, th.number { text-align: right; }
td.span { white-space: nowrap; }
.scroll { overflow-x: auto; }
code, pre { font: .92em ui-monospace, monospace; background: var(--soft); border-radius: 4px; padding: .1em .3em; }
pre { padding: .7rem; overflow-x: auto; }
svg { max-width: 100%; height: auto; }
figure { margin: 1rem 0; } figcaption { opacity: .75; }
details { margin: .4rem 0; } summary { cursor: pointer; }
@media print { body { max-width: none; font-size: 11px; } figure, tr { break-inside: avoid; } .scroll { overflow: visible; } }
"""

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'sha256-{{ digest }}'">
<title>{{ figures.title }}</title>
<style>{{ style|safe }}</style>
</head>
<body>
<h1>{{ figures.title }}</h1>
<p>{{ figures.summary }}</p>

{% if figures.ledger %}
<h2>The ledger: what each ingredient added</h2>
<p>{{ figures.ledger.about }}</p>
<figure>{{ drawn.ledger|safe }}
<figcaption>Dots with 95 % intervals; the tick is guessing among the given answers.</figcaption></figure>
<div class="scroll"><table>
<thead><tr><th>line</th><th class="number">right</th><th>95 % interval</th><th class="number">gain</th>
<th>95 % interval (paired)</th><th>over</th><th class="number">choice</th><th class="number">liked, 0 to 3</th>
<th class="number">seconds</th><th class="number">FLOPs</th>
<th class="number">tokens</th><th class="number">labels</th></tr></thead>
<tbody>
{% for line in figures.ledger.lines %}
{% if line.skipped %}
<tr><td>{{ line.name }}</td><td colspan="11">skipped: {{ line.skipped }}</td></tr>
{% else %}
<tr><td class="span">{{ line.name }}</td><td class="number">{{ "%.3f"|format(line.score.value) }}</td>
<td class="span">{{ "%.3f to %.3f"|format(line.score.low, line.score.high) }}</td>
<td class="number">{{ "–" if line.gain is none else "%+.3f"|format(line.gain.value) }}</td>
<td class="span">{{ "–" if line.gain is none else "%+.3f to %+.3f"|format(line.gain.low, line.gain.high) }}</td>
<td class="span">{{ line.over or "–" }}</td>
<td class="number">{{ "–" if line.choice is none else "%.3f"|format(line.choice.value) }}</td>
<td class="number">{{ "%.2f"|format(line.liked.value) }}</td><td class="number">{{ "%.0f"|format(line.cost.seconds) }}</td>
<td class="number">{{ "%.1e"|format(line.cost.flops) }}</td><td class="number">{{ "{:,}".format(line.cost.tokens) }}</td>
<td class="number">{{ "{:,}".format(line.cost.labels) }}</td></tr>
{% endif %}
{% endfor %}
</tbody></table></div>
<ul>
{% for line in figures.ledger.lines if line.sentence %}
<li><b>{{ line.name }}</b>: {{ line.sentence }}</li>
{% endfor %}
</ul>

<h2>The same questions through all lines</h2>
{% for sample in figures.ledger.samples %}
<details{% if loop.first %} open{% endif %}><summary>{{ sample.question }}</summary>
<div class="scroll"><table><tbody>
{% for one in sample.replies %}
<tr><th>{{ one.line }}</th><td>{{ one.reply }}</td></tr>
{% endfor %}
<tr><th>right answer</th><td>{{ sample.answer }}</td></tr></tbody></table></div></details>
{% endfor %}
{% endif %}

<h2>What was done</h2>
<div class="scroll"><table>
<thead><tr><th>stage</th><th class="number">seconds</th><th>result</th><th>command to repeat it</th></tr></thead>
<tbody>
{% for stage in figures.stages %}
<tr><td>{{ stage.name }}</td><td class="number">{{ "%.0f"|format(stage.seconds) }}</td><td>{{ stage.result }}</td>
<td><code>{{ stage.command }}</code></td></tr>
{% endfor %}
</tbody></table></div>

{% for heading, svg, sentence in charts %}
<h2>{{ heading }}</h2>
<figure>{{ svg|safe }}<figcaption>{{ sentence }}</figcaption></figure>
{% endfor %}

<h2>Scores</h2>
<p>Exact match is a greedy answer equal to the right one. Choice is the likeliest of the given answers. Intervals are 95 %.</p>
<div class="scroll"><table>
<thead><tr><th>task</th><th>metric</th><th>model</th><th class="number">score</th><th>95 % interval</th>
<th class="number">chance</th><th class="number">items</th></tr></thead>
<tbody>
{% for row in figures.scores %}
<tr><td>{{ row.task }}</td><td>{{ row.metric }}</td><td>{{ row.model }}</td>
<td class="number">{{ "%.3f"|format(row.value) }}</td><td>{{ "%.3f to %.3f"|format(row.low, row.high) }}</td>
<td class="number">{{ "–" if row.chance is none else "%.2f"|format(row.chance) }}</td><td class="number">{{ row.n }}</td></tr>
{% endfor %}
</tbody></table></div>

<h2>What instruction tuning added</h2>
<div class="scroll"><table>
<thead><tr><th>task</th><th class="number">gain in exact match</th><th>95 % interval (paired)</th><th>reading</th></tr></thead>
<tbody>
{% for row in figures.gains %}
<tr><td>{{ row.task }}</td><td class="number">{{ "%+.3f"|format(row.value) }}</td>
<td>{{ "%+.3f to %+.3f"|format(row.low, row.high) }}</td><td>{{ row.reading }}</td></tr>
{% endfor %}
</tbody></table></div>

{% if figures.alignment %}
<h2>What learning from comparisons added</h2>
<p>{{ figures.alignment.sentence }}</p>
<div class="scroll"><table>
<thead><tr><th>model</th><th>judge</th><th class="number">mean rating</th><th>95 % interval</th><th class="number">wins</th>
<th>95 % interval</th><th class="number">chance</th><th class="number">prompts</th><th>reading</th>
<th class="number">KL, nats an answer</th><th class="number">tokens an answer</th></tr></thead>
<tbody>
{% for row in figures.alignment.rows %}
<tr><td>{{ row.model }}</td><td>{{ row.judge }}</td><td class="number">{{ "%.2f"|format(row.rating.value) }}</td>
<td>{{ "%.2f to %.2f"|format(row.rating.low, row.rating.high) }}</td>
<td class="number">{{ "%.0f %%"|format(100 * row.wins.value) if row.wins else "–" }}</td>
<td>{{ "%.0f to %.0f %%"|format(100 * row.wins.low, 100 * row.wins.high) if row.wins else "–" }}</td>
<td class="number">{{ "50 %" if row.wins else "–" }}</td><td class="number">{{ row.rating.n }}</td><td>{{ row.reading }}</td>
<td class="number">{{ "–" if row.kl is none else "%.2f"|format(row.kl.value) }}</td>
<td class="number">{{ "%.1f"|format(row.length.value) }}</td></tr>
{% endfor %}
</tbody></table></div>
{% if figures.alignment.reward_model.accuracy %}
{% set told = figures.alignment.reward_model %}
<p>The reward model tells {{ "%.0f %%"|format(100 * told.accuracy.value) }} of {{ told.accuracy.n }} held-out comparisons apart
(95 % interval {{ "%.0f to %.0f %%"|format(100 * told.accuracy.low, 100 * told.accuracy.high) }}, chance 50 %);
its certainty is off by {{ "%.2f"|format(told.calibration_error) }} on average.</p>
{% endif %}
{% for sample in figures.alignment.samples %}
<div class="scroll"><table><tbody><tr><th>prompt</th><td>{{ sample.prompt }}</td></tr>
{% for one in sample.replies %}
<tr><th>{{ one.model }}</th><td>{{ one.reply }}</td></tr>
{% endfor %}
</tbody></table></div><br>
{% endfor %}

<h2>What it cost: the questions again</h2>
<p>The same questions as above, asked of the model before and after each road; a loss here is the price of alignment.</p>
<div class="scroll"><table>
<thead><tr><th>model</th><th>task</th><th class="number">change in exact match</th><th>95 % interval (paired)</th>
<th>reading</th></tr></thead>
<tbody>
{% for row in figures.alignment.tax %}
<tr><td>{{ row.model }}</td><td>{{ row.task }}</td><td class="number">{{ "%+.3f"|format(row.value) }}</td>
<td>{{ "%+.3f to %+.3f"|format(row.low, row.high) }}</td><td>{{ row.reading }}</td></tr>
{% endfor %}
</tbody></table></div>
{% endif %}

<h2>The same questions before and after</h2>
{% for sample in figures.samples %}
<div class="scroll"><table>
<tbody><tr><th>question</th><td>{{ sample.question }}</td></tr>
<tr><th>base model</th><td>{{ sample.base }}</td></tr>
<tr><th>after instruction tuning</th><td>{{ sample.tuned }}</td></tr>
<tr><th>right answer</th><td>{{ sample.answer }}</td></tr></tbody></table></div><br>
{% endfor %}

<h2>The tokenizer at work</h2>
<p>{{ figures.tokenizer.sentence }}</p>
<p>{% for piece in figures.tokenizer.pieces %}<code>{{ piece }}</code> {% endfor %}</p>

<h2>Where each model comes from</h2>
<figure>{{ drawn.lineage|safe }}
<figcaption>Each model and the one it began as, with the first signs of its files' SHA-256.</figcaption></figure>
<div class="scroll"><table>
<thead><tr><th>model</th><th>hash</th><th>began as</th><th>trained on</th><th class="number">seed</th><th>code</th></tr></thead>
<tbody>
{% for one in figures.lineage %}
<tr><td>{{ one.name }}</td><td><code>{{ one.model or "–" }}</code></td>
<td>{{ one.parent or "fresh weights" }}{% if one.parent_model %} <code>{{ one.parent_model }}</code>{% endif %}</td>
<td>{% for data in one.data %}{{ data.path }} <code>{{ data.hash }}</code> {% endfor %}</td>
<td class="number">{{ one.seed }}</td><td><code>{{ (one.commit or "–")[:9] }}</code></td></tr>
{% endfor %}
</tbody></table></div>

<h2>The machine and the settings</h2>
<div class="scroll"><table><tbody>
{% for name, value in figures.environment.items() %}
<tr><th>{{ name }}</th><td>{{ value }}</td></tr>
{% endfor %}
</tbody></table></div>
{% if figures.again %}
<p>All of it once more, with the same numbers on the same machine: <code>{{ figures.again }}</code></p>
{% endif %}
<p>Every number on this page is in <code>report.json</code> beside it.</p>
</body>
</html>
"""
