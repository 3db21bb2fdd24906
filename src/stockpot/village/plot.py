"""What a plot is: beats in order, each with several ways to say it, and a gist.

Roles are a (the hero) and b (a neighbour); what else a beat may name is drawn in stories.py. The plots
themselves are data in troubles.py and pleasures.py. A plot reads well for every draw: no beat relies on the
wording of another one.
"""

from __future__ import annotations

from dataclasses import dataclass

from stockpot.village.wording import Wording, wordings

__all__ = ["GLAD", "Plot"]


@dataclass(frozen=True, slots=True)
class Plot:
    """A story to be told.

    Attributes:
        title: as a heading.
        beats: what happens, in order; each in several ways.
        gist: the whole story in one sentence.
        ends: last sentences that may follow.
    """

    title: Wording
    beats: tuple[tuple[Wording, ...], ...]
    gist: tuple[Wording, ...]
    ends: tuple[Wording, ...]


GLAD = wordings(
    "[They both|Both of them] were very [happy|glad].",
    "[That evening|In the evening], {a} told the story to {a_his} family.",
    "{a} and {b} laughed and went home.",
    "It was a good day for both of them.",
    "They had {dish} and talked until late.",
    "From that day on, {a} and {b} were good friends.",
)
"""Ends that fit most stories."""
