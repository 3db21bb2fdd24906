"""How charts become SVG: one ink, four colours, no background, a label for screen readers."""

from __future__ import annotations

import html
from collections.abc import Sequence

import altair as alt
import vl_convert as vlc

__all__ = ["COLOURS", "INK", "legend", "svg"]

INK = "#7a7f87"  # readable on white and on near-black
COLOURS = ["#2f7ed8", "#d9822b", "#3a9d5d", "#b0509b", "#8a6d3b", "#5b6abf", "#c0392b"]

ROW = 95  # characters that stand beside each other above a chart


def legend(names: Sequence[str]) -> alt.Legend:
    """Name the colours above a chart: nothing is cut, since models often differ at the end of a long path."""
    widest = max(map(len, names), default=0)
    return alt.Legend(columns=max(1, ROW // (widest + 5)), labelLimit=0)


def svg(chart: alt.TopLevelMixin, title: str) -> str:
    """Draw a chart; ``title`` is what a screen reader says."""
    styled = (
        chart.configure(background="transparent", font="sans-serif")
        .configure_view(stroke=None)
        .configure_axis(
            labelColor=INK, titleColor=INK, gridColor="#8884", domainColor=INK, tickColor=INK, labelLimit=400
        )
        .configure_legend(labelColor=INK, orient="top")
        .configure_header(labelColor=INK, titleColor=INK)
    )
    drawn: str = vlc.vegalite_to_svg(styled.to_json())
    label = html.escape(title)
    return drawn.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)
