"""The mix of pretraining text: which kinds of documents there are, and how often each is drawn.

A document is decided by its index alone. Documents of the two splits differ: kinds made of stories, sums,
reviews and the like draw those from their own side; of the other kinds, the whole text decides. The texts
themselves are made elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable

from stockpot.village.biographies import (
    biography,
    calendar,
    card,
    comparison,
    directory,
    letter,
    pair,
    workplaces,
)
from stockpot.village.dialogues import dialogue
from stockpot.village.dice import Dice, Side, draw_on
from stockpot.village.entailment import entailment_tale
from stockpot.village.notices import notice_tale
from stockpot.village.pages import answered, quiz, remark
from stockpot.village.people import World
from stockpot.village.reading import listing_tale, reading_tale
from stockpot.village.reviews import chronicle, review_page
from stockpot.village.rewriting import lesson
from stockpot.village.stories import story
from stockpot.village.sums import sum_page, table

__all__ = ["DOCUMENT_KINDS", "draw_document"]

_Maker = Callable[[World, Dice, Side], str]


def _whole(make: Callable[[World, Dice], str]) -> _Maker:
    """Make documents whose whole text decides the side."""
    return lambda world, dice, side: draw_on(side, lambda: make(world, dice), str)


_MIX: dict[str, tuple[int, _Maker]] = {  # name: documents in a thousand, and how one is made
    "biography": (180, _whole(biography)),
    "pair": (30, _whole(pair)),
    "card": (35, _whole(card)),
    "letter": (40, _whole(letter)),
    "directory": (20, _whole(directory)),
    "calendar": (20, _whole(calendar)),
    "workplaces": (10, _whole(workplaces)),
    "comparison": (15, _whole(comparison)),
    "dialogue": (40, _whole(dialogue)),
    "story": (80, lambda world, dice, side: story(dice, side)),
    "sums": (75, lambda world, dice, side: sum_page(dice, side)),
    "table": (60, _whole(lambda world, dice: table(dice))),
    "reviews": (40, review_page),
    "chronicle": (20, chronicle),
    "entailment": (40, lambda world, dice, side: entailment_tale(dice, side)),
    "reading": (60, lambda world, dice, side: reading_tale(dice, side)),
    "listing": (40, lambda world, dice, side: listing_tale(dice, side)),
    "notices": (95, notice_tale),
    "lesson": (40, lambda world, dice, side: lesson(dice, side)),
    "answered": (50, answered),
    "quiz": (5, _whole(quiz)),
    "remark": (5, _whole(remark)),
}
DOCUMENT_KINDS = tuple(_MIX)
_SLOTS = tuple(name for name, (share, _) in _MIX.items() for _ in range(share))


def draw_document(world: World, dice: Dice, side: Side, kind: str | None = None) -> str:
    """Draw the text of one document, of a drawn kind unless one is given."""
    return _MIX[kind or dice.pick(_SLOTS)][1](world, dice, side)
