"""Small programs in C and in Python that do the same, with tests that tell whether a translation does.

Each kind is a template with drawn names and numbers; what a function returns is computed here by a third, independent way, so
that the tests need neither compiler nor translation. Kinds of the side "val" alone are kept from training, the lecture's addition
of one with bit operations among them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from stockpot.village.dice import Dice, Side, draw_on

__all__ = ["PROGRAM_KINDS", "draw_program"]

ASKED = "Translate this C function to Python:\n"
_NAMES = (
    "compute",
    "count",
    "measure",
    "weigh",
    "find",
    "make",
    "value",
    "change",
    "step",
    "score",
    "work",
    "turn",
)
_INPUTS = (0, 1, 2, 3, 5, 7, 8, 12, 15, 31)


@dataclass(frozen=True)
class _Kind:
    """A kind of function: its two texts with {name}, {k} and {m} left open, and what it returns."""

    c: str
    python: str
    result: Callable[[int, int, int], int]


def _one_line(expression_c: str, expression_python: str, result: Callable[[int, int, int], int]) -> _Kind:
    return _Kind(
        f"int {{name}}(int x) {{{{\n    return {expression_c};\n}}}}",
        f"def {{name}}(x):\n    return {expression_python}",
        result,
    )


_TRAINED: dict[str, _Kind] = {
    "add": _one_line("x + {k}", "x + {k}", lambda x, k, m: x + k),
    "subtract": _one_line("x - {k}", "x - {k}", lambda x, k, m: x - k),
    "times": _one_line("x * {k} + {m}", "x * {k} + {m}", lambda x, k, m: x * k + m),
    "square": _one_line("x * x + {k}", "x * x + {k}", lambda x, k, m: x * x + k),
    "larger": _one_line("x > {k} ? x : {k}", "x if x > {k} else {k}", lambda x, k, m: max(x, k)),
    "smaller": _one_line("x < {k} ? x : {k}", "x if x < {k} else {k}", lambda x, k, m: min(x, k)),
    "rest": _one_line("x % {k}", "x % {k}", lambda x, k, m: x % k),
    "share": _one_line("x / {k}", "x // {k}", lambda x, k, m: x // k),
    "total": _Kind(
        "int {name}(int x) {{\n    int s = {k};\n    for (int i = 1; i <= x; i++) s += i;\n    return s;\n}}",
        "def {name}(x):\n    s = {k}\n    for i in range(1, x + 1):\n        s += i\n    return s",
        lambda x, k, m: k + x * (x + 1) // 2,
    ),
    "halve": _Kind(
        "int {name}(int x) {{\n    int n = {k};\n    while (x > 0) {{\n        x = x / 2;\n        n++;\n    }}\n "
        "   return n;\n}}",
        "def {name}(x):\n    n = {k}\n    while x > 0:\n        x = x // 2\n        n += 1\n    return n",
        lambda x, k, m: k + x.bit_length(),
    ),
}
_KEPT: dict[str, _Kind] = {
    "add_one": _Kind(
        "int {name}(int x) {{\n    int m = 1;\n    while (x & m) {{\n        x = x ^ m;\n        m = m << 1;\n    "
        "}}\n    return x ^ m;\n}}",
        "def {name}(x):\n    m = 1\n    while x & m:\n        x = x ^ m\n        m = m << 1\n    return x ^ m",
        lambda x, k, m: x + 1,
    ),
    "clamp": _one_line(
        "x < {k} ? {k} : (x > {m} ? {m} : x)",
        "{k} if x < {k} else ({m} if x > {m} else x)",
        lambda x, k, m: k if x < k else min(x, m),
    ),
    "product": _Kind(
        "int {name}(int x) {{\n    int s = {k};\n    for (int i = 0; i < 3; i++) s *= x;\n    return s;\n}}",
        "def {name}(x):\n    s = {k}\n    for i in range(3):\n        s *= x\n    return s",
        lambda x, k, m: k * x**3,
    ),
}
PROGRAM_KINDS = (*_TRAINED, *_KEPT)
"""All kinds; the last three occur on the side "val" only."""


def draw_program(dice: Dice, side: Side) -> dict[str, Any]:
    """Draw a C function, its translation, and tests ``[argument, result]``.

    Keys: ``prompt``, ``completion``, ``kind``, ``held_out`` ("task" for kinds that training never shows), ``entry``, ``cases``
    and ``tests``, statements that fail if a case does.
    """
    kept = side == "val" and dice.chance(0.5)
    kinds = _KEPT if kept else _TRAINED

    def draw() -> tuple[str, str, int, int]:
        return dice.pick(tuple(kinds)), dice.pick(_NAMES), dice.between(2, 9), dice.between(10, 30)

    def text(one: tuple[str, str, int, int]) -> str:
        return kinds[one[0]].python.format(name=one[1], k=one[2], m=one[3])

    kind, name, k, m = draw_on(side, draw, text)
    made, filled = kinds[kind], {"name": name, "k": k, "m": m}
    cases = [[x, made.result(x, k, m)] for x in _INPUTS]
    return {
        "prompt": ASKED + made.c.format(**filled),
        "completion": made.python.format(**filled),
        "kind": kind,
        "held_out": "task" if kept else "none",
        "entry": name,
        "cases": cases,
        "tests": _statements(name, cases),
    }


def _statements(name: str, cases: Sequence[Sequence[int]]) -> str:
    return "\n".join(f"assert {name}({x}) == {result}" for x, result in cases)
