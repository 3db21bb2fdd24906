"""Sums told as small stories, with exact answers and worked steps.

This file decides which shapes of sum there are for one, two and three steps, in which scenes they play, and
which scenes are kept for evaluation; and it turns a sum into a problem, a tale or a line of a table. The
arithmetic is in sum_shapes.py.
"""

from __future__ import annotations

from collections.abc import Callable

from stockpot.village.dice import Dice, Side, draw_on
from stockpot.village.lexicon import ANIMALS, FRUIT, VEGETABLES
from stockpot.village.problem import HeldOut, Problem, near_numbers
from stockpot.village.sum_shapes import WARES, Scene, Sum, boxes, chain, comparison, purchase, shares, union
from stockpot.village.wording import Wording, say, small_initial, wordings

__all__ = ["draw_sum", "sum_page", "sum_problem", "sum_tale", "table"]

_KINDS = {1: "sums", 2: "steps", 3: "chains"}
_FOODS = (*FRUIT, *VEGETABLES)

# {n}: "5 apples" at the start; {k}: the number of a change, at least 2; {result}: "8 apples".
_SCENES = (
    Scene(
        WARES,
        wordings("{a} had {n}.", "At first, {a} had {n}.", "On {day}, {a} had {n}."),
        wordings(
            "{a_He} [bought|found|got] {k} more {things}.",
            "{b} gave {a_him} {k} more {things}.",
            "Then {a_he} [bought|got|found] {k} more.",
            "Later {b} brought {a_him} {k} more {things}.",
        ),
        wordings(
            "{a_He} [gave {k} {things} to {b}|lost {k} {things}|sold {k} {things}].",
            "Then {a_he} [sold|lost|gave away] {k} of them.",
            "{b} took {k} of {a_his} {things}.",
            "Later {a_he} gave away {k} {things}.",
        ),
        wordings(
            "How many {things} does {a} have now?",
            "How many {things} does {a} have?",
            "How many {things} did {a} have in the end?",
        ),
        Wording("{a} has {result}."),
    ),
    Scene(
        WARES,
        wordings("There were {n} in the basket.", "A basket held {n}.", "{a} saw {n} in the basket."),
        wordings(
            "{a} put {k} more {things} into the basket.",
            "Then {b} added {k} more {things}.",
            "{b} put in {k} more.",
        ),
        wordings(
            "{a} took {k} {things} out of the basket.",
            "Then {b} took {k} {things} out.",
            "{b} sold {k} of them.",
        ),
        wordings("How many {things} are in the basket now?", "How many {things} are in the basket?"),
        Wording("There {are} {result} in the basket."),
    ),
    Scene(
        _FOODS,
        wordings("{a} gathered {n}.", "In the garden, {a} gathered {n}.", "On {day}, {a} gathered {n}."),
        wordings(
            "{a_He} gathered {k} more {things} after lunch.",
            "{b} gathered {k} more {things} for {a_him}.",
            "{b} brought {k} more {things}.",
        ),
        wordings(
            "{a_He} ate {k} {things}.",
            "{a} and {b} ate {k} of them.",
            "{a_He} used {k} {things} in the kitchen.",
        ),
        wordings("How many {things} are left?", "How many {things} are there now?"),
        Wording("There {are} {result}."),
    ),
    Scene(
        ANIMALS,
        wordings("{a} kept {n}.", "There were {n} on the farm.", "{a} had {n} on the farm."),
        wordings(
            "{a} bought {k} more {things}.",
            "Then {k} more {things} came to the farm.",
            "{b} brought {k} more {things}.",
        ),
        wordings("{a} sold {k} {things}.", "Then {k} {things} ran away.", "{a} gave {k} {things} to {b}."),
        wordings("How many {things} are on the farm now?", "How many {things} are on the farm?"),
        Wording("There {are} {result} on the farm."),
    ),
)
_KEPT_SCENES = (
    Scene(
        WARES,
        wordings("{a} counted {n} on the shelf.", "On the shelf of the shop there were {n}."),
        wordings(
            "In the morning, {b} set {k} more {things} on the shelf.",
            "{a} brought in {k} more {things}.",
            "Then {k} more {things} were added.",
        ),
        wordings(
            "A visitor bought {k} {things} from the shelf.",
            "By noon, {k} {things} were sold.",
            "{b} carried off {k} {things}.",
        ),
        wordings(
            "What number of {things} is on the shelf at the end?", "How many {things} stay on the shelf?"
        ),
        Wording("There {are} {result} on the shelf."),
    ),
    Scene(
        ANIMALS,
        wordings("{n} stood in the meadow.", "Out in the meadow, {a} saw {n}."),
        wordings(
            "After a while, {k} more {things} came.",
            "{a} led {k} more {things} to the meadow.",
            "{b} let in {k} more {things}.",
        ),
        wordings(
            "When it rained, {k} {things} walked off.",
            "{b} took {k} {things} home.",
            "In the evening, {a} led away {k} {things}.",
        ),
        wordings(
            "What number of {things} is in the meadow at the end?", "How many {things} stay in the meadow?"
        ),
        Wording("There {are} {result} in the meadow."),
    ),
)

_SHORT: tuple[Callable[[Dice], Sum], ...] = (boxes, shares, comparison, union, purchase)
_LONG: tuple[Callable[[Dice], Sum], ...] = (
    lambda dice: boxes(dice, unpacked=True),
    lambda dice: shares(dice, later=True),
    lambda dice: comparison(dice, together=True),
    lambda dice: union(dice, more=True),
    lambda dice: purchase(dice, back=True),
)
_TALES = wordings(
    "{story} {question} {steps}. {sentence}",
    "{story} Now we can count: {steps}. {sentence}",
    "{story} {steps}, so the answer is {answer}. {sentence}",
    "{story} {question} Let us think step by step. {steps}. The answer is {answer}.",
    "{story} So {small}",
    "{question} This is what we know. {story} {steps}. {sentence}",
)


def draw_sum(dice: Dice, side: Side, steps: int, *, kept: bool = False) -> Sum:
    """Draw a sum that belongs to one side of the split.

    Args:
        dice: the draws.
        side: which side.
        steps: equations in its solution, 1 to 3.
        kept: play in a scene that training never shows.
    """
    if kept or steps == 3 or dice.chance(0.5):
        scenes = _KEPT_SCENES if kept else _SCENES
        return draw_on(side, lambda: chain(dice, steps, scenes), _key)
    shapes = _SHORT if steps == 1 else _LONG
    return draw_on(side, lambda: dice.pick(shapes)(dice), _key)


def _key(drawn: Sum) -> str:
    return f"{drawn.story} {drawn.question}"


def sum_problem(dice: Dice, side: Side, steps: int, *, kept: bool = False) -> Problem:
    """Ask for the result of a sum; three steps are a task of their own, which training never asks for."""
    drawn = draw_sum(dice, side, steps, kept=kept)
    held_out: HeldOut = "task" if steps == 3 else "template" if kept else "none"
    return Problem(
        kind=_KINDS[steps],
        question=f"{drawn.story} {drawn.question}",
        answer=str(drawn.answer),
        sentence=drawn.sentence,
        choices=near_numbers(dice, drawn.answer, drawn.slips),
        worked=f"{'. '.join(drawn.steps)}. The answer is {drawn.answer}.",
        held_out=held_out,
    )


def sum_tale(dice: Dice, side: Side) -> str:
    """Tell a sum of one or two steps with its solution, as prose."""
    drawn = draw_sum(dice, side, dice.between(1, 2))
    starts_with_name = not drawn.sentence.startswith(("There", "Together", "Each"))
    fields = {
        "story": drawn.story,
        "question": drawn.question,
        "steps": ". ".join(drawn.steps),
        "sentence": drawn.sentence,
        "small": drawn.sentence if starts_with_name else small_initial(drawn.sentence),
        "answer": str(drawn.answer),
    }
    return say(dice, _TALES, fields)


def sum_page(dice: Dice, side: Side) -> str:
    """Tell two or three sums, one a line: a single short one would come twice."""
    return "\n".join(sum_tale(dice, side) for _ in range(dice.between(2, 3)))


def table(dice: Dice) -> str:
    """Write a page of plain sums, as on a school board."""
    head = dice.pick(("Sums for today", "On the school board", "Let us practise sums", "Easy sums"))
    return "\n".join([head, *(_equation(dice) for _ in range(dice.between(6, 14)))])


def _equation(dice: Dice) -> str:
    sign = dice.pick("++--x/")
    if sign in "x/":
        a, b = dice.between(2, 6), dice.between(2, 6)
        return f"{a} x {b} = {a * b}" if sign == "x" else f"{a * b} / {b} = {a}"
    a, b = dice.between(1, 30), dice.between(2, 12)
    return f"{a} + {b} = {a + b}" if sign == "+" or a <= b else f"{a} - {b} = {a - b}"
