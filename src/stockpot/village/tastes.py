"""What villagers like in an answer: an exact taste, comparisons made with it, and prompts to earn it on.

A right answer in a whole sentence is liked best (3), a right one in a few words less (2), "I do not know." still less (1);
what is wrong, or answers with another question, is not liked at all (0). Since every question has one known answer, any
reply can be rated. It decides nothing about training.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from stockpot.village.dice import Dice, Side, draw_on
from stockpot.village.facts import ATTRIBUTES, ask_fact, fact_problem
from stockpot.village.lexicon import LAST_NAMES, MEN, WOMEN
from stockpot.village.people import World
from stockpot.village.problem import Problem
from stockpot.village.reading import reading_problem
from stockpot.village.reviews import sentiment_problem
from stockpot.village.sums import sum_problem

__all__ = ["ASKED_KINDS", "BEST", "UNKNOWN", "Comparison", "draw_asked", "draw_comparison", "rate"]

BEST = 3.0
"""The highest rating."""
UNKNOWN = "I do not know."
LONGEST = 25  # words of a reply; a longer one says something else, too
SHORTEST = 3  # words of a sentence
_PERSON = re.compile(rf"\b(?:{'|'.join((*WOMEN, *MEN))})\b(?: (?:{'|'.join(LAST_NAMES)})\b)?")


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two answers to a question; ``margin`` is the difference of their ratings, 0 a tie."""

    question: str
    chosen: str
    rejected: str
    margin: float


def rate(problem: Problem, reply: str) -> float:
    """Say how much villagers like a reply, from 0 to 3.

    It is right if it names the answer, none of the wrong choices, nothing more than a sentence holds, and says it of nobody
    whom neither the question nor the right sentence speaks of: a person who is the answer is not whom it is said of.
    """
    text = " ".join(reply.split())
    if text == UNKNOWN:
        return 1.0
    words = text.split(" ")
    if not text or len(words) > LONGEST or text.endswith("?") or not _names(problem.answer, text):
        return 0.0
    if any(_names(other, text) for other in problem.choices if other != problem.answer):
        return 0.0
    spoken_of = _people(f"{problem.question} {_without(problem.answer, problem.sentence)}")
    if not _people(_without(problem.answer, text)) <= spoken_of:  # true of somebody else, or of nobody
        return 0.0
    is_sentence = len(words) >= SHORTEST and text[0].isupper() and text.endswith(".")
    return BEST if is_sentence else 2.0


def draw_asked(world: World, dice: Dice, side: Side) -> Problem:
    """Draw a question that people are asked to compare answers to; nothing of it is held out."""
    kind = dice.pick(_SLOTS)
    return _ASKED[kind][1](world, dice, side)


def draw_comparison(world: World, dice: Dice, side: Side) -> Comparison:
    """Draw a question and two answers of different kinds, the better one first."""
    problem = draw_asked(world, dice, side)
    one, other = dice.sample(_ANSWERS, 2)
    while one is other:
        one, other = dice.sample(_ANSWERS, 2)
    first, second = one(world, dice, problem), other(world, dice, problem)
    ratings = rate(problem, first), rate(problem, second)
    if ratings[0] < ratings[1]:
        first, second = second, first
    return Comparison(problem.question, first, second, abs(ratings[0] - ratings[1]))


def _names(answer: str, text: str) -> bool:
    """Whether a text names an answer as whole words; a sentence may begin with it."""
    return re.search(_whole(answer), text, re.IGNORECASE) is not None


def _without(answer: str, text: str) -> str:
    """Leave out a text's first naming of the answer."""
    return re.sub(_whole(answer), "", text, count=1, flags=re.IGNORECASE)


def _whole(answer: str) -> str:
    return rf"(?<!\w){re.escape(answer)}(?!\w)"


def _people(text: str) -> set[str]:
    """Gather the first and last names in a text."""
    return {word for name in _PERSON.findall(text) for word in name.split()}


# --- answers ---


def _right(world: World, dice: Dice, problem: Problem) -> str:
    return problem.answer


def _right_sentence(world: World, dice: Dice, problem: Problem) -> str:
    return problem.sentence


def _wrong(world: World, dice: Dice, problem: Problem) -> str:
    return dice.pick([choice for choice in problem.choices if choice != problem.answer])


def _wrong_sentence(world: World, dice: Dice, problem: Problem) -> str:
    wrong = _wrong(world, dice, problem)
    said = re.sub(_whole(problem.answer), lambda _: wrong, problem.sentence, count=1)
    return said if said != problem.sentence else f"It is {wrong}."


def _unknown(world: World, dice: Dice, problem: Problem) -> str:
    return UNKNOWN


def _question(world: World, dice: Dice, problem: Problem) -> str:
    return ask_fact(world, dice, dice.pick(world.asked), dice.pick(ATTRIBUTES))[0]


_Answer = Callable[[World, Dice, Problem], str]
_ANSWERS: tuple[_Answer, ...] = (
    *(_right_sentence,) * 6,
    *(_right,) * 5,
    *(_wrong_sentence,) * 3,
    *(_wrong,) * 3,
    *(_unknown,) * 2,
    _question,
)


def _fact(world: World, dice: Dice, side: Side) -> Problem:
    def draw() -> Problem:
        return fact_problem(world, dice, dice.pick(world.asked), dice.pick(ATTRIBUTES))

    return draw_on(side, draw, lambda problem: problem.question)


_Asked = Callable[[World, Dice, Side], Problem]
_ASKED: dict[str, tuple[int, _Asked]] = {  # kind: questions in a hundred, and how one is made
    "facts": (50, _fact),
    "sums": (20, lambda world, dice, side: sum_problem(dice, side, 1)),
    "steps": (10, lambda world, dice, side: sum_problem(dice, side, 2)),
    "sentiment": (10, lambda world, dice, side: sentiment_problem(world, dice, side)),
    "reading": (10, lambda world, dice, side: reading_problem(dice, side)),
}
ASKED_KINDS = tuple(_ASKED)
"""Kinds of questions whose answers people compare."""
_SLOTS = tuple(kind for kind, (share, _) in _ASKED.items() for _ in range(share))
