"""Ladlish: the village's second language, for translation with one right answer.

Simple sentences are drawn in English and put into Ladlish by rules: every word has its own, nouns come before their adjectives,
the verb stands last, and two or more of a thing end in "-im". Nothing about it is irregular, so a model that has the rules
translates sentences it has never seen. It is apart from the documents and chats of the village.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from stockpot.village.dice import Dice, Side, draw_on

__all__ = ["LADLISH", "draw_translation"]

_DOERS = ("baker", "teacher", "farmer", "child", "dog", "cat", "goat", "hen")
_THINGS = (
    "river",
    "bridge",
    "garden",
    "house",
    "basket",
    "apple",
    "letter",
    "lamp",
    "boat",
    "tree",
    "stone",
    "song",
)
_ADJECTIVES = ("old", "young", "small", "large", "red", "green", "quiet", "happy", "cold", "warm")
_VERBS = ("sees", "finds", "carries", "paints", "likes", "brings", "sells", "washes")
_PLACES = ("in", "near", "behind", "under")
_COUNTS = ("two", "three", "four", "five")
_THEIRS = (
    "sa du tre kor pim bako lerin farno mio vulf mirr geta kuki rivo ponta jarda kasu kosta pomel brifa lampo nava arbo "
    "stenu kanta vetu nuvo piku granda ruva verdo tihi gaja kolu varma vidal trovel portel pintel amel bringel vendel lavel "
    "en pre malu sube"
)

LADLISH: dict[str, str] = dict(
    zip(("the", *_COUNTS, *_DOERS, *_THINGS, *_ADJECTIVES, *_VERBS, *_PLACES), _THEIRS.split(), strict=True)
)
"""Each English word's Ladlish one."""
_DIRECTIONS = ("Translate into Ladlish: ", "Translate from Ladlish: ")


@dataclass(frozen=True)
class _Thing:
    """A noun with what stands before it in English; a count makes it plural."""

    noun: str
    adjective: str
    count: str

    @property
    def english(self) -> str:
        """Say it in English."""
        plural = {"child": "children"}.get(self.noun, f"{self.noun}s")
        words = (self.count or "the", self.adjective, plural if self.count else self.noun)
        return " ".join(word for word in words if word)

    @property
    def ladlish(self) -> str:
        """Say it in Ladlish."""
        noun = LADLISH[self.noun] + ("im" if self.count else "")
        words = (LADLISH[self.count or "the"], noun, LADLISH.get(self.adjective, ""))
        return " ".join(word for word in words if word)


@dataclass(frozen=True)
class _Sentence:
    """Who does what, and perhaps where."""

    who: _Thing
    verb: str
    what: _Thing
    place: str
    where: _Thing | None

    @property
    def english(self) -> str:
        """Say it in English: the place last, the verb without its ending for several."""
        several = {"carries": "carry", "washes": "wash"}.get(self.verb, self.verb[:-1])
        parts = [self.who.english, several if self.who.count else self.verb, self.what.english]
        parts += [self.place, self.where.english] if self.where else []
        return _sentence(parts)

    @property
    def ladlish(self) -> str:
        """Say it in Ladlish: the verb last."""
        parts = [self.who.ladlish, self.what.ladlish]
        parts += [LADLISH[self.place], self.where.ladlish] if self.where else []
        return _sentence([*parts, LADLISH[self.verb]])


def draw_translation(dice: Dice, side: Side) -> tuple[str, str]:
    """Draw what is asked and the one right answer, in either direction; the English sentence decides the side."""
    drawn = draw_on(side, lambda: _draw(dice), lambda one: one.english)
    if dice.chance(0.5):
        return _DIRECTIONS[0] + drawn.english, drawn.ladlish
    return _DIRECTIONS[1] + drawn.ladlish, drawn.english


def _draw(dice: Dice) -> _Sentence:
    who, what = _thing(dice, _DOERS), _thing(dice, _THINGS)
    where = _Thing(dice.pick(_THINGS), "", "") if dice.chance(0.4) else None
    return _Sentence(who, dice.pick(_VERBS), what, dice.pick(_PLACES), where)


def _thing(dice: Dice, nouns: Sequence[str]) -> _Thing:
    adjective = dice.pick(_ADJECTIVES) if dice.chance(0.5) else ""
    return _Thing(dice.pick(nouns), adjective, dice.pick(_COUNTS) if dice.chance(0.3) else "")


def _sentence(parts: Sequence[str]) -> str:
    text = " ".join(parts)
    return f"{text[0].upper()}{text[1:]}."
