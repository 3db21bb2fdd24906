"""Small texts whose questions are answered by reading them: where a thing is, who has it, what was packed.

A scene moves one thing through places or hands; another thing stays where it is, so that the last place
named is not always the answer. The answer is the state after the last move, kept while the text is written.
"""

from __future__ import annotations

from dataclasses import dataclass

from stockpot.village.cast import cast
from stockpot.village.dice import Dice, Side, draw_on
from stockpot.village.lexicon import ANIMALS, DAYS, GOODS, MEN, THINGS, WEATHER, WOMEN
from stockpot.village.problem import Problem, draw_choices
from stockpot.village.wording import NUMBERS, Wording, listed, say, wordings

__all__ = ["Scene", "listing_problem", "listing_tale", "reading_problem", "reading_tale"]

_PLACES = (
    "the kitchen",
    "the garden",
    "the cellar",
    "the attic",
    "the barn",
    "the stable",
    "the shop",
    "the school",
    "the church",
    "the mill",
)
_NAMES = (*WOMEN, *MEN)
_START = wordings(
    "{a} put the {thing} in {place}.",
    "{a} left the {thing} in {place}.",
    "The {thing} was in {place}.",
    "There was {a_thing} in {place}.",
)
_OTHER = wordings(
    "The {other} was in {place}.", "{b} put the {other} in {place}.", "{a} saw the {other} in {place}."
)
_MOVE = wordings(
    "{who} took the {thing} to {place}.",
    "{who} brought the {thing} to {place}.",
    "Then {who} carried the {thing} to {place}.",
    "Later {who} moved the {thing} to {place}.",
)
_GIVE = wordings(
    "{a} gave the {thing} to {b}.", "{a} handed the {thing} to {b}.", "{b} got the {thing} from {a}."
)
_PASS = wordings("{b} gave it to {c}.", "Then {b} handed it to {c}.", "Later {c} got it from {b}.")
_BYSTANDER = wordings("{c} was there too.", "{c} had {an_other}.", "{c} went to {place}.")

_WHERE = wordings(
    "Where is the {thing} now?", "Where is the {thing}?", "In which place is the {thing} at the end?"
)
_KEPT_WHERE = wordings("Name the place of the {thing}.", "If you need the {thing}, where do you go?")
_WHO = wordings(
    "Who has the {thing} now?", "Who has the {thing}?", "Which person has the {thing} at the end?"
)
_KEPT_WHO = wordings("Name the person with the {thing}.", "If you need the {thing}, whom do you ask?")
_ASKED = wordings("{text} {question}", "Read this: {text} {question}", "{text}\n{question}")
_TALES = wordings(
    "{text} [So|Now|In the end,] {inside}",
    "{text} {question} {sentence}",
    "{text} {question} We know that {inside}",
)


@dataclass(frozen=True, slots=True)
class Scene:
    """A told scene: its text, the thing it is about, where it ends up, and the answers to choose from."""

    text: str
    thing: str
    end: str
    sentence: str
    choices: tuple[str, ...]


def _draw_places(dice: Dice) -> Scene:
    """Move a thing once or twice; another thing stays."""
    fields, thing, other = cast(dice), *dice.sample(THINGS, 2)
    places = dice.sample(_PLACES, 4)
    moves = dice.between(1, 2)
    fields |= {**thing.fields("thing"), "other": other.one}
    told = [say(dice, _START, {**fields, "place": places[0]})]
    for way, place in zip(dice.sample(_MOVE, moves), places[1:], strict=False):
        told.append(say(dice, (way,), {**fields, "place": place, "who": fields[dice.pick("ab")]}))
    told.insert(dice.between(1, len(told)), say(dice, _OTHER, {**fields, "place": places[3]}))
    end = places[moves]
    return Scene(
        " ".join(told), thing.one, end, f"The {thing.one} is in {end}.", draw_choices(dice, end, places)
    )


def _draw_hands(dice: Dice) -> Scene:
    """Hand a thing on once or twice, with somebody else near by."""
    fields, thing, other = cast(dice, 3), *dice.sample(THINGS, 2)
    fields |= {**thing.fields("thing"), "an_other": other.a, "place": dice.pick(_PLACES)}
    told, end = [say(dice, _GIVE, fields)], fields["b"]
    if dice.chance(0.5):
        told.append(say(dice, _PASS, fields))
        end = fields["c"]
    else:
        told.insert(dice.below(2), say(dice, _BYSTANDER, fields))
    names = [fields["a"], fields["b"], fields["c"], *dice.sample(_NAMES, 4)]
    choices = draw_choices(dice, end, [name for name in names[:3] if name != end] + names[3:5], 4)
    return Scene(" ".join(told), thing.one, end, f"{end} has the {thing.one}.", choices)


def _draw(dice: Dice, side: Side, *, is_place: bool) -> Scene:
    return draw_on(side, lambda: (_draw_places if is_place else _draw_hands)(dice), lambda scene: scene.text)


def reading_problem(dice: Dice, side: Side, *, kept: bool = False) -> Problem:
    """Ask where a thing is or who has it; ``kept``: in a wording that training never shows."""
    is_place = dice.chance(0.6)
    scene = _draw(dice, side, is_place=is_place)
    if is_place:
        ways = _KEPT_WHERE if kept else _WHERE
    else:
        ways = _KEPT_WHO if kept else _WHO
    question = say(dice, ways, {"thing": scene.thing})
    return Problem(
        kind="reading",
        question=say(dice, _ASKED, {"text": scene.text, "question": question}),
        answer=scene.end,
        sentence=scene.sentence,
        choices=scene.choices,
        held_out="template" if kept else "none",
    )


def reading_tale(dice: Dice, side: Side) -> str:
    """Tell two or three scenes, each with how it ends, some with the question first."""
    lines = []
    for _ in range(dice.between(2, 3)):
        is_place = dice.chance(0.6)
        scene = _draw(dice, side, is_place=is_place)
        fields = {"text": scene.text, "sentence": scene.sentence, "inside": _inside(scene.sentence)}
        fields["question"] = say(dice, _WHERE if is_place else _WHO, {"thing": scene.thing})
        lines.append(say(dice, _TALES, fields))
    return "\n".join(lines)


def _inside(sentence: str) -> str:
    return "the " + sentence[4:] if sentence.startswith("The ") else sentence


# What somebody did with several things, what is asked, and the same asked in a kept way.
_LISTINGS: tuple[tuple[Wording, Wording, Wording], ...] = tuple(
    (Wording(told), Wording(asked), Wording(kept))
    for told, asked, kept in (
        ("{a} packed {things}.", "What did {a} pack?", "Make a list of all that {a} packed."),
        ("{a} bought {things} at the market.", "What did {a} buy?", "Make a list of all that {a} bought."),
        ("{a} lost {things} on the way.", "What did {a} lose?", "Make a list of all that {a} lost."),
        ("{b} gave {a} {things}.", "What did {a} get?", "Make a list of all that {a} got."),
        (
            "{a} carried {things} home.",
            "What did {a} carry home?",
            "Make a list of all that {a} carried home.",
        ),
    )
)
_AFTER = wordings(
    "It was a {weather} day.", "Then it rained.", "That was on {day}.", "{a_He} was in a hurry."
)
_LIST_FLAGS = ("List the things.", "Please list everything.", "Give me a list.")


_NAMED = tuple(dict.fromkeys((*GOODS, *THINGS, *ANIMALS)))  # some stand in two lists


def _things(dice: Dice, count: int) -> list[str]:
    names = []
    for noun in dice.sample(_NAMED, count):
        number = dice.between(1, 6)
        names.append(noun.a if number == 1 else f"{NUMBERS[number]} {noun.many}")
    return names


def listing_problem(dice: Dice, side: Side, *, kept: bool = False) -> Problem:
    """Ask for the things named in a sentence; ``kept``: in a wording that training never shows."""

    def draw() -> tuple[str, list[str], str]:
        fields, things = cast(dice), _things(dice, dice.between(2, 4))
        fields |= {"things": listed(things), "weather": dice.pick(WEATHER), "day": dice.pick(DAYS)}
        told, asked, asked_kept = dice.pick(_LISTINGS)
        text = told.fill(fields)
        if dice.chance(0.5):
            text = f"{text} {say(dice, _AFTER, fields)}"
        question = asked_kept.fill(fields) if kept else f"{asked.fill(fields)} {dice.pick(_LIST_FLAGS)}"
        return text, things, question

    text, things, question = draw_on(side, draw, lambda drawn: drawn[0])
    answer = listed(things)
    return Problem(
        kind="listing",
        question=f"{text} {question}",
        answer=answer,
        sentence=f"The things are {answer}.",
        choices=draw_choices(dice, answer, _wrong_lists(dice, things)),
        held_out="template" if kept else "none",
    )


def _wrong_lists(dice: Dice, things: list[str]) -> list[str]:
    """Give three lists with one thing exchanged."""
    wrong: list[str] = []
    for new in _things(dice, 8):
        if new not in things and len(wrong) < 3:
            changed = list(things)
            changed[dice.below(len(things))] = new
            wrong.append(listed(changed))
    return wrong


def listing_tale(dice: Dice, side: Side) -> str:
    """Write one to three shopping lists: a sentence, then its things line by line."""

    def draw() -> str:
        fields, things = cast(dice), _things(dice, dice.between(2, 4))
        told = dice.pick(_LISTINGS)[0].fill({**fields, "things": listed(things)})
        lines = "\n".join(f"- {thing}" for thing in things)
        return f"{told} Here is the list:\n{lines}"

    return "\n".join(draw_on(side, draw, str) for _ in range(dice.between(1, 3)))
