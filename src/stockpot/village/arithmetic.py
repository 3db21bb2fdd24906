"""Arithmetic written out digit by digit: tasks whose answers have exactly n tokens.

Whoever is right on a share p of digits, each on its own, is right on p to the n of answers. ``rules`` has a table of its own
for each letter, common and rare ones, to be known by heart; ``columns`` adds each pair of digits and drops what is carried;
``sums`` is true addition, written from the ones on, as one adds on paper: its digits hang together by what is carried.
"""

from __future__ import annotations

from functools import cache
from itertools import accumulate
from string import ascii_letters
from typing import Literal

from stockpot.village.dice import Dice, Side, draw_on

__all__ = ["ARITHMETIC_KINDS", "ARITHMETIC_SIGNS", "ArithmeticKind", "draw_arithmetic"]

ArithmeticKind = Literal["rules", "columns", "sums"]
ARITHMETIC_KINDS: tuple[ArithmeticKind, ...] = ("rules", "columns", "sums")
ARITHMETIC_SIGNS = f"0123456789+&={ascii_letters}"
"""Every sign that occurs."""

_SHARES = list(
    accumulate(1 / (rank + 1) for rank in range(len(ascii_letters)))
)  # Zipf 1935: the r-th has share 1 / r


@cache
def _tables(seed: int) -> dict[str, list[list[int]]]:
    """Draw the table of each rule: what digit the digits a and b make."""
    dice = Dice(seed, "arithmetic/tables")
    return {rule: [[dice.below(10) for _ in range(10)] for _ in range(10)] for rule in ascii_letters}


def draw_arithmetic(dice: Dice, side: Side, kind: ArithmeticKind, digits: int, seed: int) -> tuple[str, str]:
    """Draw a question and its answer: ``("4a80c3=", "71")`` (rules), ``("48&03=", "41")``, ``("48+03=", "150")`` (sums).

    Args:
        dice: at the record's place.
        side: of the split.
        kind: of arithmetic.
        digits: of each number; of rules, how many are applied.
        seed: of the tables that the rules have.
    """
    if kind == "rules":
        tables = _tables(seed)
        drawn = draw_on(
            side, lambda: [(dice.below(10), _rule(dice), dice.below(10)) for _ in range(digits)], _spelled
        )
        return _spelled(drawn), "".join(str(tables[rule][a][b]) for a, rule, b in drawn)
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


def _rule(dice: Dice) -> str:
    """Draw a rule, common ones more often."""
    place = dice.random() * _SHARES[-1]
    return ascii_letters[next(rank for rank, share in enumerate(_SHARES) if place < share)]


def _spelled(drawn: list[tuple[int, str, int]]) -> str:
    return "".join(f"{a}{rule}{b}" for a, rule, b in drawn) + "="
