"""The chart of a task: the same outputs under four metrics against compute, with what exact match was predicted to be."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import altair as alt
import numpy as np

from stockpot.judge.drawing import COLOURS, INK, svg
from stockpot.judge.emergence_fit import shape_values

if TYPE_CHECKING:
    from stockpot.judge.emergence import Curve, TaskCurves

__all__ = ["curve_panels"]

TITLES = {
    "exact": "exact match (dashes: p^n, dots: a^n, grey: what n items can see)",
    "edit": "token edit distance, per token",
    "nats": "nats a token",
    "brier": "Brier score a token",
}


def curve_panels(task: TaskCurves, axis: str) -> str:
    """Draw one panel a metric, points with 95 % intervals over the better fitting shape; returns SVG."""
    panels = [_panel(task, curve, axis) for curve in task.curves]
    return svg(alt.concat(*panels, columns=2), f"{task.task}: {task.sentence}")


def _panel(task: TaskCurves, curve: Curve, axis: str) -> Any:
    rows = [
        {"x": point.compute, "y": one.value, "low": one.low, "high": one.high}
        for point in task.points
        for one in [point.scores[curve.metric]]
    ]
    across = alt.X("x:Q", title=axis, scale=alt.Scale(type="log", nice=False))
    up = alt.Y("y:Q", title=TITLES.get(curve.metric, curve.metric))
    base = alt.Chart(alt.InlineData(values=rows))
    layers: list[Any] = [
        _line(_fitted(task, curve), across, up, [1, 0], COLOURS[0], 0.35),
        base.mark_rule(strokeWidth=2, color=COLOURS[0]).encode(x=across, y="low:Q", y2="high:Q"),
        base.mark_point(filled=True, size=60, color=COLOURS[0]).encode(x=across, y=up),
    ]
    if curve.metric == "exact":
        powers = [{"x": p.compute, "y": p.power.value} for p in task.points if p.power is not None]
        rights = [
            {"x": p.compute, "y": p.right_power.value} for p in task.points if p.right_power is not None
        ]
        layers += [
            _line(powers, across, up, [6, 4], COLOURS[1], 1),
            _line(rights, across, up, [2, 3], COLOURS[2], 1),
        ]
        n = task.points[0].scores["exact"].n
        if n:
            limit = alt.Chart(alt.InlineData(values=[{"y": 3 / n}]))
            layers.append(limit.mark_rule(color=INK, strokeDash=[1, 3]).encode(y="y:Q"))
    return alt.layer(*layers).properties(
        width=300, height=180, title=alt.Title(f"{curve.shapes.form}", color=INK, fontSize=11)
    )


def _fitted(task: TaskCurves, curve: Curve) -> list[dict[str, float]]:
    shapes = curve.shapes
    better = shapes.sharp if shapes.sharp_error < shapes.smooth_error else shapes.smooth
    x = np.log10([point.compute for point in task.points])
    fine = np.linspace(x[0], x[-1], 80)
    return [{"x": float(10**a), "y": float(b)} for a, b in zip(fine, shape_values(fine, better), strict=True)]


def _line(
    rows: list[dict[str, float]], across: Any, up: Any, dash: list[int], colour: str, opacity: float
) -> Any:
    chart = alt.Chart(alt.InlineData(values=rows))
    return chart.mark_line(strokeDash=dash, color=colour, opacity=opacity).encode(x=across, y=up)
