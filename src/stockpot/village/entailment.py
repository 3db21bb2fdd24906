"""Does it follow? Pairs of sentences whose relation is computed, not written down.

A topic is a set of possible worlds and statements about them, each true in some of the worlds. A hypothesis
follows from a premise if it is true in every world where the premise is ("yes"), cannot be true if it is
true in none of them ("no"), and is open otherwise ("maybe"). Every hypothesis is drawn equally often with
each of the three answers, so that the hypothesis alone tells nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from stockpot.village.cast import cast
from stockpot.village.dice import Dice, Side, draw_on
from stockpot.village.lexicon import ANIMALS, DAYS, GOODS
from stockpot.village.problem import Problem
from stockpot.village.wording import NUMBERS, Wording, say, small_initial, wordings

__all__ = [
    "ANSWERS",
    "TOPICS",
    "Pair",
    "Topic",
    "draw_pair",
    "entailment_problem",
    "entailment_tale",
    "relation",
]

ANSWERS = ("yes", "no", "maybe")


def relation(premise: frozenset[str], hypothesis: frozenset[str]) -> str:
    """Tell whether a hypothesis is true given a premise, from the worlds in which each is true.

    >>> relation(frozenset({"cat"}), frozenset({"cat", "dog"}))
    'yes'
    """
    if premise <= hypothesis:
        return "yes"
    return "maybe" if premise & hypothesis else "no"


@dataclass(frozen=True)
class Topic:
    """Possible worlds, and what can be said about them.

    Attributes:
        statements: a wording, and the worlds (space-separated) in which it is true.
        kept: wordings used in evaluation only, as hypotheses.
    """

    name: str
    statements: Mapping[str, str]
    kept: Mapping[str, str]

    @cached_property
    def is_about_one(self) -> bool:
        """True if every statement is about one person."""
        return all("{a}" in text and "{b}" not in text for text in (*self.statements, *self.kept))

    @cached_property
    def pairs(self) -> tuple[_Choices, ...]:
        """For each hypothesis that can have all three answers: the premises of each."""
        return self._choices(self.statements)

    @cached_property
    def kept_pairs(self) -> tuple[_Choices, ...]:
        """The same for hypotheses that training never shows."""
        return self._choices(self.kept)

    def _choices(self, hypotheses: Mapping[str, str]) -> tuple[_Choices, ...]:
        said = [(text, Wording(text), frozenset(worlds.split())) for text, worlds in self.statements.items()]
        found = []
        for text, worlds in hypotheses.items():
            true = frozenset(worlds.split())
            by_answer: dict[str, list[Wording]] = {answer: [] for answer in ANSWERS}
            for other, wording, where in said:
                if other != text:
                    by_answer[relation(where, true)].append(wording)
            if all(by_answer.values()):  # so a statement that no other one implies is a premise only
                found.append(_Choices(Wording(text), {a: tuple(w) for a, w in by_answer.items()}))
        return tuple(found)


@dataclass(frozen=True, slots=True)
class _Choices:
    """A hypothesis and, for each answer, premises that lead to it."""

    hypothesis: Wording
    premises: Mapping[str, tuple[Wording, ...]]


@dataclass(frozen=True, slots=True)
class Pair:
    """A premise, a hypothesis and whether it follows: ``yes``, ``no`` or ``maybe``."""

    premise: str
    hypothesis: str
    answer: str

    @property
    def clause(self) -> str:
        """The hypothesis as part of a sentence: without full stop, a small initial unless it is a name."""
        text = self.hypothesis.rstrip(".")
        return small_initial(text) if text.split()[0] in _SMALL else text


_SMALL = {"At", "It", "On", "The"}  # first words of statements that are not names


def _numbers(low: int, high: int) -> str:
    return " ".join(str(n) for n in range(low, high + 1))


def _counting() -> Topic:
    said = {"{a} has no {things}.": "0", "{a} has {things}.": _numbers(1, 9)}
    kept = {}
    for n in range(2, 8):
        said[f"{{a}} has {NUMBERS[n]} {{things}}."] = str(n)
        said[f"{{a}} has more than {NUMBERS[n]} {{things}}."] = _numbers(n + 1, 9)
        said[f"{{a}} has fewer than {NUMBERS[n]} {{things}}."] = _numbers(0, n - 1)
        said[f"{{a}} has {NUMBERS[n]} or {NUMBERS[n + 1]} {{things}}."] = f"{n} {n + 1}"
        kept[f"{{a}} has at least {NUMBERS[n]} {{things}}."] = _numbers(n, 9)
        kept[f"The number of {{things}} that {{a}} has is below {NUMBERS[n]}."] = _numbers(0, n - 1)
    return Topic("counting", said, kept)


TOPICS: tuple[Topic, ...] = (
    _counting(),
    Topic(
        "place",
        {
            "At {time}, {a} was in the kitchen of {a_his} house.": "kitchen",
            "At {time}, {a} was in the cellar of {a_his} house.": "cellar",
            "At {time}, {a} was at home.": "kitchen cellar",
            "At {time}, {a} was not at home.": "market mill church river",
            "At {time}, {a} was at the market.": "market",
            "At {time}, {a} was at the mill.": "mill",
            "At {time}, {a} was in the church.": "church",
            "At {time}, {a} was by the river.": "river",
            "At {time}, {a} was at the market or at the mill.": "market mill",
            "At {time}, {a} was at the mill or by the river.": "mill river",
            "At {time}, {a} was not in the church.": "kitchen cellar market mill river",
            "At {time}, {a} was not at the market.": "kitchen cellar mill church river",
        },
        {
            "At {time}, {a} was somewhere in {a_his} house.": "kitchen cellar",
            "At {time}, {a} was outside of {a_his} house.": "market mill church river",
        },
    ),
    Topic(
        "pet",
        {
            "The only pet of {a} is a cat.": "cat",
            "The only pet of {a} is a dog.": "dog",
            "The only pet of {a} is a rabbit.": "rabbit",
            "The only pet of {a} is a parrot.": "parrot",
            "The only pet of {a} is a goose.": "goose",
            "The only pet of {a} is a goldfish.": "goldfish",
            "The only pet of {a} is a bird.": "parrot goose",
            "The only pet of {a} is a cat or a dog.": "cat dog",
            "The only pet of {a} is a dog or a parrot.": "dog parrot",
            "The only pet of {a} is not a bird.": "cat dog rabbit goldfish tortoise beetle",
            "The only pet of {a} is not a cat.": "dog rabbit parrot goose goldfish tortoise beetle",
            "The only pet of {a} has four legs.": "cat dog rabbit tortoise",
            "The only pet of {a} has wings.": "parrot goose beetle",
        },
        {
            "The only pet of {a} has two legs.": "parrot goose",
            "The only pet of {a} has fur.": "cat dog rabbit",
        },
    ),
    Topic(
        "meal",
        {
            "{a} ate only bread for supper.": "bread",
            "{a} ate only cheese for supper.": "cheese",
            "{a} ate only pasta for supper.": "pasta",
            "{a} ate only chicken for supper.": "chicken",
            "{a} ate only beef for supper.": "beef",
            "{a} ate nothing for supper.": "nothing",
            "{a} ate only meat for supper.": "chicken beef",
            "{a} ate no meat for supper.": "bread cheese pasta nothing",
            "{a} ate something for supper.": "bread cheese pasta chicken beef",
            "{a} ate bread or pasta for supper, and nothing else.": "bread pasta",
            "{a} ate cheese or beef for supper, and nothing else.": "cheese beef",
            "{a} did not eat cheese for supper.": "bread pasta chicken beef nothing",
            "{a} did not eat pasta for supper.": "bread cheese chicken beef nothing",
        },
        {
            "{a} ate pasta for dinner.": "pasta",
            "{a} went to bed without supper.": "nothing",
            "{a} ate the meat of a cow for supper.": "beef",
        },
    ),
    Topic(
        "order",
        {
            "{a} came home before {b} on {day}.": "four-six before",
            "{a} came home after {b} on {day}.": "seven-five after",
            "{b} came home before {a} on {day}.": "seven-five after",
            "{b} came home after {a} on {day}.": "four-six before",
            "{a} and {b} came home at the same time on {day}.": "six-six same",
            "{a} and {b} did not come home at the same time on {day}.": "four-six before seven-five after",
            "{a} did not come home after {b} on {day}.": "four-six before six-six same",
            "{b} did not come home after {a} on {day}.": "seven-five after six-six same",
            "On {day}, {a} came home at four, and {b} came home at six.": "four-six",
            "On {day}, {a} came home at seven, and {b} came home at five.": "seven-five",
            "On {day}, both {a} and {b} came home at six.": "six-six",
        },
        {
            "{a} was the first of the two to come home on {day}.": "four-six before",
            "{b} was the first of the two to come home on {day}.": "seven-five after",
        },
    ),
    Topic(
        "age",
        {
            "{a} is older than {b}.": "eight-six older",
            "{a} is younger than {b}.": "seven-nine younger",
            "{b} is older than {a}.": "seven-nine younger",
            "{b} is younger than {a}.": "eight-six older",
            "{a} and {b} are of exactly the same age.": "day same",
            "{a} is not older than {b}.": "seven-nine younger day same",
            "{b} is not older than {a}.": "eight-six older day same",
            "{a} and {b} are not of the same age.": "eight-six older seven-nine younger",
            "{a} is seven years old, and {b} is nine years old.": "seven-nine",
            "{a} is eight years old, and {b} is six years old.": "eight-six",
            "{a} and {b} were born on the same day.": "day",
        },
        {
            "{a} was born before {b}.": "eight-six older",
            "{a} was born after {b}.": "seven-nine younger",
        },
    ),
    Topic(
        "colour",
        {
            "The hat of {a} is red.": "red",
            "The hat of {a} is blue.": "blue",
            "The hat of {a} is green.": "green",
            "The hat of {a} is black.": "black",
            "The hat of {a} is white.": "white",
            "The hat of {a} is red or blue.": "red blue",
            "The hat of {a} is blue or green.": "blue green",
            "The hat of {a} is black or white.": "black white",
            "The hat of {a} is not red.": "blue green black white",
            "The hat of {a} is not blue.": "red green black white",
            "The hat of {a} is not green.": "red blue black white",
            "The hat of {a} is not black.": "red blue green white",
        },
        {
            "The hat of {a} has the colour of grass.": "green",
            "The hat of {a} has the colour of snow.": "white",
        },
    ),
    Topic(
        "weather",
        {
            "It rained the whole day on {day}.": "rain",
            "It snowed the whole day on {day}.": "snow",
            "On {day} the sun shone from morning to evening.": "sun",
            "On {day} it was dry, but the sun did not shine.": "cloud",
            "On {day} it was dry.": "sun cloud",
            "On {day} it was not dry.": "rain snow",
            "It did not rain on {day}.": "snow sun cloud",
            "It did not snow on {day}.": "rain sun cloud",
            "The sun did not shine on {day}.": "rain snow cloud",
        },
        {
            "On {day} something fell from the sky.": "rain snow",
            "On {day} the streets were free of rain and snow.": "sun cloud",
        },
    ),
    Topic(
        "work",
        {
            "{a} is a baker and has no other job.": "baker",
            "{a} is a teacher and has no other job.": "teacher",
            "{a} is a shepherd and has no other job.": "shepherd",
            "{a} is a nurse and has no other job.": "nurse",
            "{a} is a doctor and has no other job.": "doctor",
            "{a} is a nurse or a doctor and has no other job.": "nurse doctor",
            "{a} has only one job, and it is to care for the sick.": "nurse doctor carer",
            "{a} has only one job, and it is with sheep.": "shepherd shearer",
            "{a} has only one job, and it is to make bread.": "baker",
            "{a} is not a baker.": "teacher shepherd shearer nurse doctor carer",
            "{a} is not a nurse.": "baker teacher shepherd shearer doctor carer",
            "{a} is a baker or a teacher and has no other job.": "baker teacher",
        },
        {
            "{a} works with people who are ill.": "nurse doctor carer",
            "{a} works with children in a school.": "teacher",
        },
    ),
)
_TIMES = ("noon", "three o'clock", "four o'clock", "nine o'clock", "six o'clock")
_COUNTED = (*GOODS, *ANIMALS)

_QUESTIONS = wordings(
    "{premise} Is it true that {clause}? Answer yes, no or maybe.",
    "{premise} Does it follow that {clause}? Yes, no or maybe?",
    "Read this: {premise} Is this true: {hypothesis} Yes, no or maybe?",
    "If this is true: {premise} Is it also true that {clause}? Answer yes, no or maybe.",
    "First sentence: {premise} Second sentence: {hypothesis} Does the second follow from the first: yes, no or maybe?",
)
_KEPT_QUESTIONS = wordings(
    "{premise} Can we conclude from this that {clause}? Say yes, no or maybe.",
    "We know the following. {premise} What about this claim: {hypothesis} Is it right? Yes, no or maybe?",
)
_SENTENCES = {
    "yes": wordings("Yes, it is true that {clause}.", "Yes, this follows: {hypothesis}"),
    "no": wordings("No, it is not true that {clause}.", "No, it cannot be true that {clause}."),
    "maybe": wordings(
        "Maybe, but we cannot know whether {clause}.", "Maybe: the text does not say whether {clause}."
    ),
}
_TALES = {
    "yes": wordings(
        "{premise} So it is true that {clause}.",
        "{premise} From this it follows that {clause}.",
        "We know this: {premise} So we also know that {clause}.",
    ),
    "no": wordings(
        "{premise} So it is not true that {clause}.",
        "{premise} It cannot be true that {clause}.",
        "Somebody said: {hypothesis} But that is wrong. {premise}",
    ),
    "maybe": wordings(
        "{premise} Maybe {clause}, but we cannot be sure.",
        "{premise} We do not know whether {clause}.",
        "{premise} Is it true that {clause}? Nobody can tell.",
    ),
}


def draw_pair(dice: Dice, side: Side, *, kept: bool = False) -> Pair:
    """Draw a premise and a hypothesis that belong to one side of the split, with each answer equally likely.

    Args:
        dice: the draws.
        side: which side.
        kept: draw a hypothesis that training never shows.
    """
    return draw_on(side, lambda: _draw(dice, kept), lambda pair: f"{pair.premise} {pair.hypothesis}")


def _draw(dice: Dice, kept: bool) -> Pair:
    topic = dice.pick(TOPICS)
    choices, answer = dice.pick(topic.kept_pairs if kept else topic.pairs), dice.pick(ANSWERS)
    fields = {
        **cast(dice),
        "things": dice.pick(_COUNTED).many,
        "time": dice.pick(_TIMES),
        "day": dice.pick(DAYS),
    }
    about = fields
    if answer == "maybe" and topic.is_about_one and dice.chance(0.25):  # a premise about somebody else
        about = {**fields, "a": fields["b"], "a_his": fields["b_his"]}
        premises = choices.premises[dice.pick(ANSWERS)]
    else:
        premises = choices.premises[answer]
    return Pair(say(dice, premises, about), say(dice, (choices.hypothesis,), fields), answer)


def entailment_problem(dice: Dice, side: Side, *, kept: bool = False) -> Problem:
    """Ask whether a hypothesis follows; ``kept``: in a wording, and about a hypothesis, that training never shows."""
    pair = draw_pair(dice, side, kept=kept)
    fields = _said(pair)
    return Problem(
        kind="entailment",
        question=say(dice, _KEPT_QUESTIONS if kept else _QUESTIONS, fields),
        answer=pair.answer,
        sentence=say(dice, _SENTENCES[pair.answer], fields),
        choices=ANSWERS,
        held_out="template" if kept else "none",
    )


def entailment_tale(dice: Dice, side: Side) -> str:
    """Say in prose of two to four pairs what follows from what."""
    pairs = [draw_pair(dice, side) for _ in range(dice.between(2, 4))]
    return " ".join(say(dice, _TALES[pair.answer], _said(pair)) for pair in pairs)


def _said(pair: Pair) -> dict[str, str]:
    return {"premise": pair.premise, "hypothesis": pair.hypothesis, "clause": pair.clause}
