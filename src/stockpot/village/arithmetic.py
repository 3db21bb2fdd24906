"""Arithmetic written out digit by digit: tasks whose answers have exactly n tokens.

Whoever is right on a share p of digits, each on its own, is right on p to the n of answers. ``codes`` asks for the two digits
that each pair of letters stands for, hundreds to be known by heart; ``columns`` adds each pair of digits and drops
what is carried; ``sums`` is true addition, written from the ones on, as one adds on paper: its digits hang together by what is
carried.
"""

from __future__ import annotations

from functools import cache
from string import ascii_lowercase
from typing import Literal

from stockpot.village.dice import Dice, Side, draw_on

__all__ = ["ARITHMETIC_KINDS", "ARITHMETIC_SIGNS", "ArithmeticKind", "draw_arithmetic"]

ArithmeticKind = Literal["codes", "columns", "sums"]
ARITHMETIC_KINDS: tuple[ArithmeticKind, ...] = ("codes", "columns", "sums")
ARITHMETIC_SIGNS = f"0123456789+&={ascii_lowercase}"
"""Every sign that occurs."""


@cache
def _codebook(seed: int) -> list[tuple[str, str]]:
    """Draw two digits for every pair of letters."""
    dice = Dice(seed, "arithmetic/codes")
    return [(a + b, f"{dice.below(100):02d}") for a in ascii_lowercase for b in ascii_lowercase]


def draw_arithmetic(dice: Dice, side: Side, kind: ArithmeticKind, digits: int, seed: int) -> tuple[str, str]:
    """Draw a question and its answer: ``("qxab=", "7142")`` (codes), ``("48&03=", "41")``, ``("48+03=", "150")`` (sums).

    Args:
        dice: at the record's place.
        side: of the split.
        kind: of arithmetic.
        digits: of each number; of codes, of the answer (an odd number counts as the next even one).
        seed: of the codes.
    """
    if kind == "codes":
        book = _codebook(seed)
        drawn = draw_on(
            side,
            lambda: [dice.pick(book) for _ in range((digits + 1) // 2)],
            lambda some: "".join(pair for pair, _ in some),
        )
        return "".join(pair for pair, _ in drawn) + "=", "".join(code for _, code in drawn)
    sign = "&" if kind == "columns" else "+"

    def draw() -> tuple[list[int], list[int]]:
        return [dice.below(10) for _ in range(digits)], [dice.below(10) for _ in range(digits)]

    def text(drawn: tuple[list[int], list[int]]) -> str:
        first, second = ("".join(map(str, one)) for one in drawn)
        return f"{first}{sign}{second}="

    numbers = draw_on(side, draw, text)
    first, second = numbers
    if kind == "columns":
        return text(numbers), "".join(str((a + b) % 10) for a, b in zip(first, second, strict=True))
    total = int("".join(map(str, first))) + int("".join(map(str, second)))
    return text(numbers), f"{total:0{digits + 1}d}"[::-1]
