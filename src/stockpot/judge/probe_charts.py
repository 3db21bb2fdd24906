"""Charts of a probing: where each task is solved, how scores grow with the layers, and what the mixes weigh."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import altair as alt

from stockpot.judge.drawing import COLOURS, legend, svg

if TYPE_CHECKING:
    from stockpot.judge.probe_task import TaskProbe

__all__ = ["mix_chart", "place_chart", "score_chart"]


def place_chart(tasks: Sequence[TaskProbe], layers: Sequence[int]) -> str:
    """Draw each task's expected layer with its interval, and the centre of gravity of its mix; returns SVG."""
    names = [one.task for one in tasks]
    placed = [
        {"task": one.task, "layer": one.place.value, "low": one.place.low, "high": one.place.high}
        for one in tasks
        if one.place.value is not None
    ]
    centres = [{"task": one.task, "layer": one.centre[0]} for one in tasks]
    across = alt.X("layer:Q", title="layer (point: expected layer, tick: centre of gravity)")
    across = across.scale(domain=[0, max(layers)])
    up = alt.Y("task:N", title=None, sort=names)
    base = alt.Chart(alt.InlineData(values=placed))
    rules = base.mark_rule(strokeWidth=3, color=COLOURS[0]).encode(
        x=alt.X("low:Q").scale(domain=[0, max(layers)], clamp=True), x2="high:Q", y=up
    )
    points = base.mark_point(filled=True, size=90, color=COLOURS[0]).encode(x=across, y=up)
    ticks = (
        alt.Chart(alt.InlineData(values=centres))
        .mark_tick(color=COLOURS[1], thickness=3, size=18)
        .encode(x=across, y=up)
    )
    return svg(
        alt.layer(ticks, rules, points).properties(width=560, height=alt.Step(30)),
        "expected layer and centre of gravity of each task",
    )


def score_chart(tasks: Sequence[TaskProbe], layers: Sequence[int]) -> str:
    """Draw scores against the last layer seen, with intervals, and the controls as dashes; returns SVG."""
    rows: list[dict[str, Any]] = []
    for one in tasks:
        for layer, score in zip(layers, one.scores, strict=True):
            rows.append(
                {"task": one.task, "layer": layer, "y": score.value, "low": score.low, "high": score.high}
            )
    dashed = [
        {"task": one.task, "layer": layer, "y": score.value}
        for one in tasks
        for layer, score in zip(layers, one.control, strict=False)
    ]
    names = [one.task for one in tasks]
    scale = alt.Scale(domain=names, range=COLOURS)
    colour = alt.Color("task:N", title=None, sort=names, scale=scale, legend=legend(names))
    across = alt.X("layer:Q", title="layers 0 to this one are seen")
    up = alt.Y("y:Q", title="share right (dashes: control labels)", scale=alt.Scale(zero=False))
    base = alt.Chart(alt.InlineData(values=rows))
    bands = base.mark_area(opacity=0.2).encode(x=across, y=alt.Y("low:Q"), y2="high:Q", color=colour)
    lines = base.mark_line(strokeWidth=2, point=True).encode(x=across, y=up, color=colour)
    charts: list[Any] = [bands, lines]
    if dashed:
        below = alt.Chart(alt.InlineData(values=dashed))
        charts.append(below.mark_line(strokeDash=[4, 3], strokeWidth=1).encode(x=across, y=up, color=colour))
    return svg(alt.layer(*charts).properties(width=560, height=300), "scores of probes by layers seen")


def mix_chart(tasks: Sequence[TaskProbe], layers: Sequence[int]) -> str:
    """Draw what each task's mix weighs the layers with, one row a task; returns SVG."""
    rows = [
        {"task": one.task, "layer": layer, "weight": weight}
        for one in tasks
        for layer, weight in zip(layers, one.mix, strict=True)
    ]
    chart = (
        alt.Chart(alt.InlineData(values=rows))
        .mark_bar(color=COLOURS[0])
        .encode(
            x=alt.X("layer:O", title="layer"),
            y=alt.Y("weight:Q", title=None, axis=alt.Axis(tickCount=2)),
            row=alt.Row("task:N", title="weight in the mix", sort=[one.task for one in tasks]),
        )
        .properties(width=560, height=50)
    )
    return svg(chart, "weights of the layers in each task's mix")
