"""Find the answer in what a model wrote: a number, one of some choices, or the first line.

Pure functions on text; each gives None where there is no such answer, which counts as wrong.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from stockpot.prompt.wordings import Extract

__all__ = ["extract", "first_choice", "first_line", "last_number", "same_answer"]

_FORM = r"-?(?:\d[\d,]*(?:\.\d+)?|(?<![\d.])\.\d+)"
_NUMBER = re.compile(_FORM)
_SAID = re.compile(rf"(?:answer|result)[^.\n]{{0,40}}?(?:is|:|=)\s*\$?\s*({_FORM})", re.IGNORECASE)


def extract(reply: str, kind: Extract, choices: Sequence[str] = ()) -> str | None:
    """Find the answer of a kind in a reply; ``choices`` are those of the kind "choice"."""
    if kind == "number":
        return last_number(reply)
    if kind == "choice":
        return first_choice(reply, choices)
    return first_line(reply)


def last_number(reply: str) -> str | None:
    """Give the number that is said to be the answer, else the last one; without thousands' commas.

    >>> last_number("23 - 20 = 3. 3 + 6 = 9. The answer is 9. Then 4 more came.")
    '9'
    >>> last_number("That makes 1,200 euros"), last_number("The answer is .50"), last_number("none")
    ('1200', '.5', None)
    """
    said = _SAID.findall(reply)
    found = said or _NUMBER.findall(reply)
    if not found:
        return None
    text: str = found[-1].replace(",", "")
    return text.rstrip("0").rstrip(".") if "." in text else text


def first_choice(reply: str, choices: Sequence[str]) -> str | None:
    """Give the choice that is written first, as a whole word, whatever its case; the longer of two at one place.

    >>> first_choice("Not sure. No, it is not entailment.", ["no", "entailment", "not entailment"])
    'no'
    """
    places = []
    for choice in choices:
        found = re.search(rf"(?<!\w){re.escape(choice)}(?!\w)", reply, re.IGNORECASE)
        if found:
            places.append((found.start(), -len(choice), choice))
    return min(places)[2] if places else None


def first_line(reply: str) -> str | None:
    """Give the first line with something in it, without the full stop at its end."""
    for line in reply.splitlines():
        if line.strip():
            return line.strip().removesuffix(".")
    return None


def same_answer(found: str | None, right: str) -> bool:
    """Compare answers: as numbers where both are, else as words, whatever their case.

    >>> same_answer("9.0", "9"), same_answer("Nine", "nine"), same_answer(None, "9")
    (True, True, False)
    """
    if found is None:
        return False
    try:
        return float(found) == float(right.replace(",", ""))
    except ValueError:
        return found.strip().casefold() == right.strip().casefold()
