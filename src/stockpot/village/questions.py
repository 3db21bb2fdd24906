"""Evaluation items: every kind of question, with what of it was held out.

Three things are kept from training chats: people (nothing is asked about them), wordings, and whole kinds
of tasks. Items of the side "val" of the other kinds are made of stories, sums and reviews that no training
record contains. This file orders and numbers the items; the questions are made by the rooms of their kinds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count, zip_longest

from stockpot.village.dice import Dice, Side
from stockpot.village.entailment import entailment_problem
from stockpot.village.facts import ATTRIBUTES, Attribute, fact_problem, older_problem, who_problem
from stockpot.village.notices import notice_problem
from stockpot.village.people import Person, World
from stockpot.village.problem import Problem
from stockpot.village.reading import listing_problem, reading_problem
from stockpot.village.reviews import headline_problem, sentiment_problem
from stockpot.village.rewriting import negation_problem, rewriting_problem
from stockpot.village.sums import sum_problem
from stockpot.village.wording import Wording

__all__ = ["HELD_OUT_KINDS", "KINDS", "TRAINED_KINDS", "draw_questions"]

_Asked = tuple[Person, Attribute, Wording | None]
_Maker = Callable[[World, Dice, Side, bool], Problem]

_TRAINED: dict[str, _Maker] = {
    "sums": lambda world, dice, side, kept: sum_problem(dice, side, 1, kept=kept),
    "steps": lambda world, dice, side, kept: sum_problem(dice, side, 2, kept=kept),
    "sentiment": lambda world, dice, side, kept: sentiment_problem(world, dice, side, kept=kept),
    "entailment": lambda world, dice, side, kept: entailment_problem(dice, side, kept=kept),
    "reading": lambda world, dice, side, kept: reading_problem(dice, side, kept=kept),
    "notices": lambda world, dice, side, kept: notice_problem(world, dice, side, kept=kept),
    "listing": lambda world, dice, side, kept: listing_problem(dice, side, kept=kept),
    "rewriting": lambda world, dice, side, kept: rewriting_problem(dice, side, kept=kept),
}
_HELD_OUT: dict[str, _Maker] = {
    "headline": lambda world, dice, side, kept: headline_problem(world, dice, side),
    "chains": lambda world, dice, side, kept: sum_problem(dice, side, 3),
    "negation": lambda world, dice, side, kept: negation_problem(dice, side),
}
TRAINED_KINDS = ("facts", *_TRAINED)
"""Kinds of questions that training chats ask, too."""
HELD_OUT_KINDS = ("who", "older", *_HELD_OUT)
"""Kinds of questions that occur in evaluation only."""
KINDS = (*TRAINED_KINDS, *HELD_OUT_KINDS)


def draw_questions(world: World, kind: str, side: Side) -> Iterator[Problem]:
    """Draw the questions of one kind, each once; facts, who and older come to an end, the others do not."""
    dice = Dice(world.seed, f"questions/{side}/{kind}")
    if kind == "facts":
        return _facts(world, dice, side)
    if kind == "who":
        return _who(world, dice)
    if kind == "older":
        return _older(world, dice)
    return _endless(world, dice, side, kind)


def _endless(world: World, dice: Dice, side: Side, kind: str) -> Iterator[Problem]:
    make, asked = (_TRAINED | _HELD_OUT)[kind], set()
    for index in count():
        problem = make(world, dice.at(index), side, side == "val" and index % 2 == 1)
        if problem.question not in asked:
            asked.add(problem.question)
            yield problem


def _facts(world: World, dice: Dice, side: Side) -> Iterator[Problem]:
    """Ask each fact of a person at most once per way of holding out, taking turns between the ways."""
    asked: list[_Asked] = [(person, attribute, None) for person in world.asked for attribute in ATTRIBUTES]
    strangers: list[_Asked] = [
        (person, attribute, None) for person in world.held_out for attribute in ATTRIBUTES
    ]
    reworded: list[_Asked] = [(person, fact, dice.pick(fact.kept_questions)) for person, fact, _ in asked]
    groups = [asked] if side == "train" else [asked, strangers, reworded]
    for row in zip_longest(*(dice.shuffled(group) for group in groups)):
        for entry in row:
            if entry is not None:
                person, attribute, wording = entry
                yield fact_problem(world, dice, person, attribute, kept=wording)


def _who(world: World, dice: Dice) -> Iterator[Problem]:
    for way, person in enumerate(dice.shuffled(world.people)):
        yield who_problem(world, dice, person, way)


def _older(world: World, dice: Dice) -> Iterator[Problem]:
    asked = set()
    for _ in range(1, len(world.people) // 2):
        people = dice.shuffled(world.people)
        for one, other in zip(people[::2], people[1::2], strict=True):
            pair = frozenset((one.number, other.number))
            if one.year != other.year and pair not in asked:
                asked.add(pair)
                yield older_problem(dice, one, other)
