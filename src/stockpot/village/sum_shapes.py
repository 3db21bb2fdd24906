"""The shapes of sums: boxes, shares, comparisons, prices, and chains of changes, each with its story and its steps.

Each function draws one sum of its shape. Story and steps are made from the same numbers, so they cannot
disagree; every number and every result is from 1 to 50. Which shapes are used, and which scenes are kept
for evaluation, is decided in sums.py.
"""

from __future__ import annotations

from dataclasses import dataclass

from stockpot.village.cast import cast
from stockpot.village.dice import Dice
from stockpot.village.lexicon import DAYS, GOODS
from stockpot.village.wording import Noun, Wording, count, say, wordings

__all__ = ["WARES", "Scene", "Sum", "boxes", "chain", "comparison", "purchase", "shares", "union"]

WARES = tuple(noun for noun in GOODS if noun.one not in ("basket", "box"))
_HIGHEST = 30


@dataclass(frozen=True, slots=True)
class Sum:
    """A sum in words.

    Attributes:
        story: the sentences with the numbers.
        question: what is asked.
        steps: the calculation, one equation a step.
        answer: the number asked for.
        sentence: the answer as a sentence.
        slips: wrong answers that come from a forgotten or swapped step.
    """

    story: str
    question: str
    steps: tuple[str, ...]
    answer: int
    sentence: str
    slips: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Scene:
    """Where things are counted: how it starts, grows and shrinks, and what is asked in the end."""

    things: tuple[Noun, ...]
    start: tuple[Wording, ...]
    more: tuple[Wording, ...]
    less: tuple[Wording, ...]
    ask: tuple[Wording, ...]
    sentence: Wording


_BOXES = wordings(
    "{a} has {k} boxes. There are {n} in each box.",
    "{a} fills {k} boxes. {a_He} puts {n} into each box.",
    "There are {k} boxes on the table. Each box holds {n}.",
    "{a} buys {k} boxes with {n} in each box.",
)
_UNPACKED = wordings(
    "{a} gives away {m} {things}.", "Then {b} takes {m} {things}.", "{a} sells {m} {things}."
)
_SHARED = wordings(
    "{a} has {n}. {a_He} shares them equally among {k} friends.",
    "{a} brings {n} and gives the same number to each of {k} friends.",
)
_SHARED_LATER = wordings(
    "{a} has {n}. {b} gives {a_him} {m} more. {a} shares them all equally among {k} friends."
)
_MORE_THAN = wordings(
    "{a} has {n}. {b} has {k} more {things} than {a}.", "{a} found {n}. {b} found {k} more {things} than {a}."
)
_FEWER_THAN = wordings(
    "{a} has {n}. {b} has {k} fewer {things} than {a}.",
    "{a} found {n}. {b} found {k} fewer {things} than {a}.",
)
_BOTH = wordings("{a} has {n}, and {b} has {m}.", "{a} found {n}, and {b} found {m}.")
_BOTH_AND_MORE = wordings("{a} has {n}, and {b} has {m}. Then they buy {k} more {things}.")
_PRICES = wordings(
    "One {thing} costs {k} coins. {a} buys {m} {things}.",
    "{a} buys {m} {things}. Each {thing} costs {k} coins.",
)
_PAID = wordings("{a_He} pays with {p} coins.", "{a_He} gives the seller {p} coins.")


def chain(dice: Dice, steps: int, scenes: tuple[Scene, ...]) -> Sum:
    """Start with some, then have more or fewer, step by step; no way of saying it comes twice."""
    scene = dice.pick(scenes)
    noun = dice.pick(scene.things)
    total = start = dice.between(3, 15)
    fields = {**cast(dice), **noun.fields("thing"), "n": count(start, noun), "day": dice.pick(DAYS)}
    told, equations, totals, flipped = [say(dice, scene.start, fields)], [], [start], start
    used: set[Wording] = set()
    for _ in range(steps):
        change = dice.between(2, 9)
        grows = total - change < 1 or (total + change <= _HIGHEST and dice.chance(0.5))
        ways = tuple(way for way in (scene.more if grows else scene.less) if way not in used)
        way = dice.pick(ways)
        used.add(way)
        told.append(say(dice, (way,), {**fields, "k": str(change)}))
        after = total + change if grows else total - change
        equations.append(f"{total} {'+' if grows else '-'} {change} = {after}")
        flipped = flipped - change if grows else flipped + change
        total = after
        totals.append(total)
    return Sum(
        story=" ".join(told),
        question=say(dice, scene.ask, fields),
        steps=tuple(equations),
        answer=total,
        sentence=_result(scene.sentence, fields, total, noun),
        slips=(flipped, totals[-2], start),
    )


def _result(sentence: Wording, fields: dict[str, str], answer: int, noun: Noun) -> str:
    return sentence.fill({**fields, "result": count(answer, noun), "are": "is" if answer == 1 else "are"})


def boxes(dice: Dice, *, unpacked: bool = False) -> Sum:
    """Several boxes with the same number in each; some are given away if ``unpacked``."""
    noun, k, n = dice.pick(WARES), dice.between(2, 5), dice.between(2, 6)
    m = dice.between(2, min(9, k * n - 1))
    fields = _fields(dice, noun, k=k, m=m, n=count(n, noun))
    story, steps = say(dice, _BOXES, fields), (f"{k} x {n} = {k * n}",)
    if not unpacked:
        question, sentence = (
            f"How many {noun.many} are there in all?",
            f"There are {count(k * n, noun)} in all.",
        )
        return Sum(story, question, steps, k * n, sentence, (k + n,))
    answer = k * n - m
    return Sum(
        story=f"{story} {say(dice, _UNPACKED, fields)}",
        question=f"How many {noun.many} are left?",
        steps=(*steps, f"{k * n} - {m} = {answer}"),
        answer=answer,
        sentence=f"There {'is' if answer == 1 else 'are'} {count(answer, noun)} left.",
        slips=(k * n, k * n + m),
    )


def shares(dice: Dice, *, later: bool = False) -> Sum:
    """Things shared equally among friends, nothing left over; some of them come later if ``later``."""
    noun, k, each = dice.pick(WARES), dice.between(2, 5), dice.between(2, 6)
    total = k * each
    m = dice.between(2, min(9, total - 2)) if later else 0
    n = total - m
    fields = _fields(dice, noun, k=k, m=m, n=count(n, noun))
    division = f"{total} / {k} = {each}"
    return Sum(
        story=say(dice, _SHARED_LATER if later else _SHARED, fields),
        question=f"How many {noun.many} does each friend get?",
        steps=(f"{n} + {m} = {total}", division) if later else (division,),
        answer=each,
        sentence=f"Each friend gets {count(each, noun)}.",
        slips=(total - k, n),
    )


def comparison(dice: Dice, *, together: bool = False) -> Sum:
    """One has more or fewer than the other; asked is for the other, or for both ``together``."""
    noun, n, k = dice.pick(WARES), dice.between(3, 12), dice.between(2, 8)
    is_more = n - k < 1 or dice.chance(0.5)
    other = n + k if is_more else n - k
    fields = _fields(dice, noun, k=k, n=count(n, noun))
    story = say(dice, _MORE_THAN if is_more else _FEWER_THAN, fields)
    found = "found" in story
    first = f"{n} {'+' if is_more else '-'} {k} = {other}"
    if together:
        return _together(story, (first, f"{n} + {other} = {n + other}"), n + other, noun, (other, n + k))
    b = fields["b"]
    return Sum(
        story=story,
        question=f"How many {noun.many} {f'did {b} find' if found else f'does {b} have'}?",
        steps=(first,),
        answer=other,
        sentence=f"{b} {'found' if found else 'has'} {count(other, noun)}.",
        slips=(n - k if is_more else n + k, n),
    )


def union(dice: Dice, *, more: bool = False) -> Sum:
    """Two people have some, and get more of them if ``more``; asked is for all of them."""
    noun, n, m, k = dice.pick(WARES), dice.between(2, 12), dice.between(2, 12), dice.between(2, 9)
    fields = _fields(dice, noun, k=k, n=count(n, noun), m=count(m, noun))
    first = f"{n} + {m} = {n + m}"
    if not more:
        return _together(say(dice, _BOTH, fields), (first,), n + m, noun, (abs(n - m), max(n, m)))
    story, answer = say(dice, _BOTH_AND_MORE, fields), n + m + k
    return _together(story, (first, f"{n + m} + {k} = {answer}"), answer, noun, (n + m, n + m - k))


def _together(story: str, steps: tuple[str, ...], answer: int, noun: Noun, slips: tuple[int, ...]) -> Sum:
    found = "found" in story
    return Sum(
        story=story,
        question=f"How many {noun.many} {'did they find' if found else 'do they have'} together?",
        steps=steps,
        answer=answer,
        sentence=f"Together they {'found' if found else 'have'} {count(answer, noun)}.",
        slips=slips,
    )


def purchase(dice: Dice, *, back: bool = False) -> Sum:
    """Several things at a price; asked is for what is paid, or for the money that comes ``back``."""
    noun, k, m = dice.pick(WARES), dice.between(2, 6), dice.between(2, 5)
    cost = m * k
    paid = cost + dice.between(1, 10)
    fields = _fields(dice, noun, k=k, m=m, p=paid)
    story, steps, a = say(dice, _PRICES, fields), (f"{m} x {k} = {cost}",), fields["a"]
    if not back:
        return Sum(story, f"How many coins does {a} pay?", steps, cost, f"{a} pays {cost} coins.", (m + k,))
    answer = paid - cost
    return Sum(
        story=f"{story} {say(dice, _PAID, fields)}",
        question=f"How many coins does {a} get back?",
        steps=(*steps, f"{paid} - {cost} = {answer}"),
        answer=answer,
        sentence=f"{a} gets {answer} {'coin' if answer == 1 else 'coins'} back.",
        slips=(cost, paid - k),
    )


def _fields(dice: Dice, noun: Noun, **numbers: int | str) -> dict[str, str]:
    return {**cast(dice), **noun.fields("thing"), **{name: str(number) for name, number in numbers.items()}}
