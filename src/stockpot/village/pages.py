"""Pages of questions: with answers, without answers, and remarks on questions.

In pretraining text a question is not always followed by its answer: some pages answer, some go on with the
next question, some only say where the question came up. All ask in training wordings, and only about people
whom training may ask about.
"""

from __future__ import annotations

from stockpot.village.dice import Dice, Side, draw_on
from stockpot.village.facts import ATTRIBUTES, ask_fact
from stockpot.village.lexicon import DAYS, VILLAGE_NAME
from stockpot.village.people import World
from stockpot.village.sums import draw_sum
from stockpot.village.wording import say, wordings

__all__ = ["answered", "quiz", "remark"]

_PAIRS = wordings("Question: {question}\nAnswer: {answer}", "Q: {question}\nA: {answer}")
_QUIZ_HEADS = wordings(
    "Questions for the school test on {day}",
    "The {village} quiz",
    "How well do you know {village}?",
    "Homework for {day}",
    "Can you answer these questions?",
)
_REMARKS = wordings(
    "{question} This question will come up in the school test on {day}.",
    "{question} Nobody in the class knew the answer.",
    "{question} If you do not know it, ask the librarian.",
    "{question} That was the first question of the quiz on {day}.",
    'The teacher asked, "{question}" It was quiet in the room.',
    "{question} {other} {third} These are the questions for {day}.",
    'My little brother always asks, "{question}" and "{other}"',
)


def _fact(world: World, dice: Dice) -> tuple[str, str]:
    return ask_fact(world, dice, dice.pick(world.asked), dice.pick(ATTRIBUTES))


def answered(world: World, dice: Dice, side: Side) -> str:
    """Write a page of questions with short answers: facts and sums."""
    way, pairs = (dice.pick(_PAIRS),), []
    for _ in range(dice.between(2, 6)):
        if dice.chance(0.4):
            drawn = draw_sum(dice, side, dice.between(1, 2))
            question, answer = f"{drawn.story} {drawn.question}", str(drawn.answer)
        else:
            question, answer = draw_on(side, lambda: _fact(world, dice), lambda asked: asked[0])
        pairs.append(say(dice, way, {"question": question, "answer": answer}))
    return "\n".join(pairs)


def quiz(world: World, dice: Dice) -> str:
    """Write a page of questions without answers."""
    head = say(dice, _QUIZ_HEADS, {"day": dice.pick(DAYS), "village": VILLAGE_NAME})
    questions = [_fact(world, dice)[0] for _ in range(dice.between(3, 7))]
    if dice.chance(0.5):
        questions = [f"{number}. {question}" for number, question in enumerate(questions, start=1)]
    return "\n".join([head, *questions])


def remark(world: World, dice: Dice) -> str:
    """Write some lines in which questions come up and stay open."""
    lines = []
    for _ in range(dice.between(1, 3)):
        fields = {name: _fact(world, dice)[0] for name in ("question", "other", "third")}
        lines.append(say(dice, _REMARKS, {**fields, "day": dice.pick(DAYS)}))
    return "\n".join(lines)
