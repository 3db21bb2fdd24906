"""Stories about villagers, told from plots: one of a few plots, endlessly many tellings.

This file draws who and what a story is about and puts the beats together; the plots are data in troubles.py
and pleasures.py. A story's gist is what retelling it in one sentence should say.
"""

from __future__ import annotations

from dataclasses import dataclass

from stockpot.village.cast import cast
from stockpot.village.dice import Dice, Side, draw_on
from stockpot.village.lexicon import (
    ANIMALS,
    DAYS,
    DISHES,
    FRUIT,
    GOODS,
    SEASONS,
    SPOTS,
    THINGS,
    VEGETABLES,
    WEATHER,
)
from stockpot.village.pleasures import PLEASURES
from stockpot.village.troubles import TROUBLES
from stockpot.village.wording import NUMBERS, Noun, capital, say, wordings

__all__ = ["PLOTS", "Story", "draw_story", "story"]

PLOTS = (*TROUBLES, *PLEASURES)

_COLOURS = ("red", "blue", "green", "white", "brown", "black", "yellow", "grey")
_ADJECTIVES = (
    "new",
    "small",
    "pretty",
    "big",
    "red",
    "blue",
    "green",
    "silver",
    "wooden",
    "strange",
    "fine",
    "long",
)
_BUILDINGS = ("house", "barn", "stable", "shop")
_SKILLS = (
    "to swim",
    "to play the flute",
    "to bake bread",
    "to ride a horse",
    "to knit",
    "to read",
    "to dance",
    "to paint",
    "to play chess",
    "to catch fish",
    "to count to a hundred",
    "to build a kite",
)
_COATS = ("white", "brown", "black", "grey")
_PETS = ("cat", "dog", "hen", "duck", "rabbit", "mouse", "goose")
_FOODS = (*FRUIT, *VEGETABLES, Noun.of("egg"), Noun.of("nut"), Noun.of("bun"))
_OUTDOORS = (
    "in the garden",
    "under the old oak tree",
    "by the river",
    "near the well",
    "next to the church",
    "behind the barn",
    "on the bridge",
    "at the market",
)
_INDOORS = (
    "in the kitchen",
    "in the attic",
    "in the cellar",
    "under the bed",
    "behind the stove",
    "on the roof",
)
_TITLED = wordings("{title}\n{text}", "A story: {title}\n{text}", "{text}", "{text}", "{text}")


@dataclass(frozen=True, slots=True)
class Story:
    """A told story: its title, its text, and the whole of it in one sentence."""

    title: str
    text: str
    gist: str


def draw_story(dice: Dice, side: Side) -> Story:
    """Draw a story whose text belongs to one side of the split."""
    return draw_on(side, lambda: _draw(dice), lambda drawn: drawn.text)


def story(dice: Dice, side: Side) -> str:
    """Tell a story, sometimes with its title."""
    drawn = draw_story(dice, side)
    return say(dice, _TITLED, {"title": drawn.title, "text": drawn.text})


def _draw(dice: Dice) -> Story:
    plot, fields = dice.pick(PLOTS), _fields(dice)
    beats = [say(dice, ways, fields) for ways in plot.beats]
    if dice.chance(0.5):
        beats.append(say(dice, plot.ends, fields))
    return Story(say(dice, (plot.title,), fields), " ".join(beats), say(dice, plot.gist, fields))


def _fields(dice: Dice) -> dict[str, str]:
    thing, thing2 = dice.sample(THINGS, 2)
    spot, spot2, spot3 = dice.sample(SPOTS, 3)
    out, out2, out3 = dice.sample(_OUTDOORS, 3)
    goods, foods = dice.sample(GOODS, 3), dice.sample(_FOODS, 3)
    day, day2 = dice.sample(DAYS, 2)
    animal, vegetable = dice.pick(ANIMALS), dice.pick(VEGETABLES)
    return {
        **cast(dice),
        **thing.fields("thing"),
        "A_thing": capital(thing.a),
        "thing2": thing2.one,
        "spot": spot,
        "spot2": spot2,
        "spot3": spot3,
        "out": out,
        "out2": out2,
        "out3": out3,
        "spot_in": dice.pick(_INDOORS),
        "goods": goods[0].many,
        "goods2": goods[1].many,
        "goods3": goods[2].many,
        "some_goods": _some(dice, goods[0]),
        "some_goods2": _some(dice, goods[1]),
        "some_goods3": _some(dice, goods[2]),
        "foods": foods[0].many,
        "foods2": foods[1].many,
        "foods3": foods[2].many,
        "some_foods": _some(dice, foods[0]),
        "some_foods2": _some(dice, foods[1]),
        "some_foods3": _some(dice, foods[2]),
        "animal": animal.one,
        "pet": dice.pick(_PETS),
        "coat": dice.pick(_COATS),
        "some_animals": _some(dice, animal),
        **vegetable.fields("vegetable"),
        "fruit_trees": f"{dice.pick(FRUIT).one} trees",
        "adjective": dice.pick(_ADJECTIVES),
        "colour": dice.pick(_COLOURS),
        "building": dice.pick(_BUILDINGS),
        "skill": dice.pick(_SKILLS),
        "dish": dice.pick(DISHES),
        "few": NUMBERS[dice.between(2, 9)],
        "day": day,
        "day2": day2,
        "season": dice.pick(SEASONS),
        "weather": dice.pick(WEATHER),
    }


def _some(dice: Dice, noun: Noun) -> str:
    return f"{NUMBERS[dice.between(2, 12)]} {noun.many}"
