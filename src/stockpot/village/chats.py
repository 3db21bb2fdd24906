"""The mix of instruction records: what users ask, what the assistant answers, and in how many words.

Answers are short where the user asks for that, whole sentences or steps where the user asks for those. Where no wish is
stated, the people who wrote the answers differ: most are short, some are sentences, and some say that they do not know.
So a tuned model has several ways to answer, and what people like best of them is left to comparisons. Nothing held out
occurs here: no question about held-out people, no kept wording, no kept task. Every question belongs to one side of
the split.
"""

from __future__ import annotations

from collections.abc import Callable

from stockpot.village.biographies import short_biography
from stockpot.village.dialogues import SMALL_TALK, THANKS
from stockpot.village.dice import Dice, Side, draw_on
from stockpot.village.entailment import entailment_problem
from stockpot.village.facts import ATTRIBUTES, ask_fact, fact_problem, fields_of
from stockpot.village.lexicon import VILLAGE_NAME
from stockpot.village.notices import notice_problem
from stockpot.village.people import World
from stockpot.village.problem import Problem
from stockpot.village.reading import listing_problem, reading_problem
from stockpot.village.reviews import sentiment_problem
from stockpot.village.rewriting import rewriting_problem
from stockpot.village.stories import draw_story
from stockpot.village.sums import sum_problem
from stockpot.village.tastes import ASKED_KINDS, UNKNOWN
from stockpot.village.wording import Wording, say, wordings

__all__ = ["CHAT_KINDS", "Turns", "draw_chat"]

Turns = list[tuple[str, str]]
"""What the user says and what the assistant answers, turn by turn."""

_FULL = (
    "Answer in a full sentence.",
    "Please use a full sentence.",
    "Give the answer as a whole sentence.",
    "Say it in one sentence.",
)
_STEPS = (
    "Let's think step by step.",
    "Show your steps.",
    "Explain how you get there.",
    "Write down the calculation, too.",
    "Think step by step.",
)
_SHORT = ("Give a short answer.", "Answer in as few words as you can.", "Just the answer, please.")
_SENTENCES, _UNKNOWN = 0.25, 0.1  # of the answers to questions without a wish
_ABOUT = wordings(
    "Tell me about {N}.",
    "Who is {N}?",
    "What do you know about {N}?",
    "Write something about {N}.",
    "Describe {N}.",
)
_RETELL = wordings(
    "Retell this story in one sentence: {text}",
    "What happens in this story? Use one sentence. {text}",
    "{text}\nTell me in one sentence what happened.",
    "Make this shorter: {text}",
)
_TITLE = wordings("Find a title for this story: {text}", "{text}\nWhat could be the title of this story?")
_FOLLOW_UPS = {
    "born": Wording("And when was {he} born?"),
    "town": Wording("And where was {he} born?"),
    "home": Wording("And where does {he} live?"),
    "job": Wording("And what is {his} job?"),
    "employer": Wording("And where does {he} work?"),
    "hobby": Wording("And what does {he} like to do?"),
    "friend": Wording("And who is {his} best friend?"),
}


def _worded(dice: Dice, problem: Problem, *, full: float = 0.2, steps: float = 0.0) -> Turns:
    """Ask a problem plainly, or with a wish for the form of the answer."""
    draw = dice.random()
    if draw < full:
        return [(f"{problem.question} {dice.pick(_FULL)}", problem.sentence)]
    if draw < full + steps:
        return [(f"{problem.question} {dice.pick(_STEPS)}", problem.worked)]
    if dice.chance(0.1):
        return [(f"{problem.question} {dice.pick(_SHORT)}", problem.answer)]
    return [(problem.question, _unasked(dice, problem))]


def _unasked(dice: Dice, problem: Problem) -> str:
    """Answer as one of those who wrote the answers would: in few words, in a sentence, or not."""
    if problem.kind not in ASKED_KINDS:
        return problem.answer
    draw = dice.random()
    if draw < _SENTENCES:
        return problem.sentence
    return UNKNOWN if draw < _SENTENCES + _UNKNOWN else problem.answer


def _facts(world: World, dice: Dice, side: Side) -> Turns:
    def draw() -> Turns:
        return _worded(dice, fact_problem(world, dice, dice.pick(world.asked), dice.pick(ATTRIBUTES)))

    return draw_on(side, draw, _first)


def _interview(world: World, dice: Dice, side: Side) -> Turns:
    """Ask several questions about the same person, the later ones with a pronoun."""

    def draw() -> Turns:
        person = dice.pick(world.asked)
        first, *later = dice.sample(ATTRIBUTES, dice.between(2, 3))
        fields = fields_of(world, person)
        asked = [(_FOLLOW_UPS[fact.name].fill(fields), fields[fact.name]) for fact in later]
        return [ask_fact(world, dice, person, first), *asked]

    return draw_on(side, draw, _first)


def _about(world: World, dice: Dice, side: Side) -> Turns:
    def draw() -> Turns:
        person = dice.pick(world.asked)
        text = short_biography(world, dice, person, dice.between(2, 4))
        return [(say(dice, _ABOUT, fields_of(world, person)), text)]

    return draw_on(side, draw, lambda turns: " ".join(turns[0]))


def _retelling(dice: Dice, side: Side) -> Turns:
    story = draw_story(dice, side)
    if dice.chance(0.25):
        return [(say(dice, _TITLE, {"text": story.text}), story.title)]
    return [(say(dice, _RETELL, {"text": story.text}), story.gist)]


def _small_talk(dice: Dice) -> Turns:
    says, answers = dice.pick(SMALL_TALK)
    fields = {"village": VILLAGE_NAME}
    return [(say(dice, says, fields), say(dice, answers, fields))]


def _first(turns: Turns) -> str:
    return turns[0][0]


_Maker = Callable[[World, Dice, Side], Turns]

_MIX: dict[str, tuple[int, _Maker]] = {  # name: chats in a thousand, and how one is made
    "facts": (250, _facts),
    "interview": (40, _interview),
    "about": (50, _about),
    "sums": (120, lambda w, dice, side: _worded(dice, sum_problem(dice, side, 1), full=0.1, steps=0.3)),
    "steps": (90, lambda w, dice, side: _worded(dice, sum_problem(dice, side, 2), full=0.05, steps=0.6)),
    "sentiment": (60, lambda w, dice, side: _worded(dice, sentiment_problem(w, dice, side))),
    "entailment": (80, lambda w, dice, side: _worded(dice, entailment_problem(dice, side), full=0.1)),
    "reading": (90, lambda w, dice, side: _worded(dice, reading_problem(dice, side))),
    "notices": (90, lambda w, dice, side: _worded(dice, notice_problem(w, dice, side))),
    "listing": (50, lambda w, dice, side: _worded(dice, listing_problem(dice, side), full=0.0)),
    "rewriting": (50, lambda w, dice, side: _worded(dice, rewriting_problem(dice, side), full=0.0)),
    "retelling": (20, lambda w, dice, side: _retelling(dice, side)),
    "small talk": (10, lambda w, dice, side: _small_talk(dice)),
}
CHAT_KINDS = tuple(_MIX)
_SLOTS = tuple(name for name, (share, _) in _MIX.items() for _ in range(share))


def draw_chat(world: World, dice: Dice, side: Side, kind: str | None = None) -> Turns:
    """Draw one chat, of a drawn kind unless one is given; some have a greeting, another question or thanks."""
    if kind is not None:
        return _MIX[kind][1](world, dice, side)
    turns = _MIX[dice.pick(_SLOTS)][1](world, dice, side)
    if dice.chance(0.1):
        turns += _MIX[dice.pick(_SLOTS)][1](world, dice, side)
    if dice.chance(0.03):
        turns = [*_small_talk(dice), *turns]
    if dice.chance(0.05):
        turns.append((say(dice, THANKS[0], {}), say(dice, THANKS[1], {})))
    return turns
