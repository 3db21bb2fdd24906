"""What a question is, whatever it is about: the text that is asked, the one right answer, and ways to give it.

Every kind of question in the village (facts, sums, reviews, …) draws `Problem`s; chats, question pages and
evaluation items are made from them here. Which kinds exist and how often each is used is decided elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from stockpot.village.dice import Dice

__all__ = ["HeldOut", "Problem", "draw_choices", "near_numbers"]

HeldOut = Literal["none", "person", "template", "task"]


@dataclass(frozen=True, slots=True)
class Problem:
    """One question with one right answer.

    Attributes:
        kind: what sort of question it is.
        question: all that is asked, with the passage it is about.
        answer: the right answer in one to eight words (a copied list or sentence may be longer).
        sentence: the same answer as a whole sentence.
        choices: the answers to choose from, the right one among them, in a drawn order.
        worked: the steps that lead to the answer, for sums.
        held_out: what of it never occurs in training chats.
    """

    kind: str
    question: str
    answer: str
    sentence: str
    choices: tuple[str, ...]
    worked: str = ""
    held_out: HeldOut = "none"


def draw_choices(dice: Dice, answer: str, others: Sequence[str], size: int = 4) -> tuple[str, ...]:
    """Draw different wrong answers and put the right one among them, in a drawn order."""
    wrong = [other for other in dict.fromkeys(others) if other != answer]
    return tuple(dice.shuffled([answer, *dice.sample(wrong, min(size - 1, len(wrong)))]))


def near_numbers(dice: Dice, answer: int, slips: Sequence[int] = ()) -> tuple[str, ...]:
    """Draw four numbers to choose from: the answer, likely slips, and neighbours."""
    near = [answer + step for step in (-3, -2, -1, 1, 2, 3, 4) if answer + step >= 0]
    slips = [slip for slip in dict.fromkeys(slips) if slip >= 0 and slip != answer][:2]
    others = [*slips, *(number for number in dice.shuffled(near) if number not in slips)]
    return tuple(str(number) for number in dice.shuffled([answer, *others[:3]]))
