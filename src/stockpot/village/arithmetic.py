"""Sums of long numbers, written out digit by digit: tasks whose answers have exactly n tokens.

``columns`` adds each pair of digits on its own and drops what is carried, so that the n digits of an answer are n
independent questions: whoever is right on a share p of digits is right on p to the n of answers. ``sums`` is true addition;
the answer is written from the ones on, as one adds on paper, and its digits hang together by what is carried.
"""

from __future__ import annotations

from typing import Literal

from stockpot.village.dice import Dice, Side, draw_on

__all__ = ["ARITHMETIC_KINDS", "ArithmeticKind", "draw_arithmetic"]

ArithmeticKind = Literal["columns", "sums"]
ARITHMETIC_KINDS: tuple[ArithmeticKind, ...] = ("columns", "sums")


def draw_arithmetic(dice: Dice, side: Side, kind: ArithmeticKind, digits: int) -> tuple[str, str]:
    """Draw a question and its answer, such as ``("4821+0375=", "69150")`` or ``("4821&0375=", "4196")``."""
    sign = "&" if kind == "columns" else "+"

    def draw() -> tuple[list[int], list[int]]:
        return [dice.below(10) for _ in range(digits)], [dice.below(10) for _ in range(digits)]

    def text(drawn: tuple[list[int], list[int]]) -> str:
        first, second = ("".join(map(str, one)) for one in drawn)
        return f"{first}{sign}{second}="

    drawn = draw_on(side, draw, text)
    first, second = drawn
    if kind == "columns":
        return text(drawn), "".join(str((a + b) % 10) for a, b in zip(first, second, strict=True))
    total = int("".join(map(str, first))) + int("".join(map(str, second)))
    return text(drawn), f"{total:0{digits + 1}d}"[::-1]
