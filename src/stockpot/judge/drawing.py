"""How charts become SVG: one ink, four colours, no background, a label for screen readers."""

from __future__ import annotations

import html

import altair as alt
import vl_convert as vlc

__all__ = ["COLOURS", "INK", "svg"]

INK = "#7a7f87"  # readable on white and on near-black
COLOURS = ["#2f7ed8", "#d9822b", "#3a9d5d", "#b0509b", "#8a6d3b", "#5b6abf", "#c0392b"]


def svg(chart: alt.TopLevelMixin, title: str) -> str:
    """Draw a chart; ``title`` is what a screen reader says."""
    styled = (
        chart.configure(background="transparent", font="sans-serif")
        .configure_view(stroke=None)
        .configure_axis(labelColor=INK, titleColor=INK, gridColor="#8884", domainColor=INK, tickColor=INK)
        .configure_legend(labelColor=INK, orient="top")
        .configure_header(labelColor=INK, titleColor=INK)
    )
    drawn: str = vlc.vegalite_to_svg(styled.to_json())
    label = html.escape(title)
    return drawn.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)
