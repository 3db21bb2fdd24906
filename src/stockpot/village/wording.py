"""How sentences are put together: a tiny template language, articles, counts and lists.

A wording is text with fields and alternatives: ``"[One day|Once], {a} found {a_thing}."`` Alternatives do
not nest. The file decides form only (articles, plurals, commas, capitals); which words are used is the
business of the lexicon.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stockpot.village.dice import Dice

__all__ = [
    "NUMBERS",
    "Noun",
    "Wording",
    "a_or_an",
    "capital",
    "count",
    "listed",
    "say",
    "small_initial",
    "wordings",
]

Fields = Mapping[str, str]

NUMBERS = (
    "no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven",
    "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
    "twenty",
)  # fmt: skip

_ALTERNATIVES = re.compile(r"\[([^\[\]]*)\]")
_FIELD = re.compile(r"\{(\w+)\}")


class Wording:
    """One way to say something, with fields in braces and alternatives in brackets.

    Raises:
        ValueError: if brackets or braces do not match.
    """

    __slots__ = ("fixed", "parts")

    def __init__(self, text: str) -> None:
        parts: list[str | tuple[str, ...]] = []
        for place, piece in enumerate(_ALTERNATIVES.split(text)):
            if place % 2:
                parts.append(tuple(_compiled(choice) for choice in piece.split("|")))
            elif piece:
                parts.append(_compiled(piece))
        self.parts = tuple(parts)
        self.fixed = parts[0] if len(parts) == 1 and isinstance(parts[0], str) else None

    def __call__(self, dice: Dice, fields: Fields) -> str:
        """Draw the alternatives and fill in the fields.

        Raises:
            KeyError: if a field is missing.
        """
        if self.fixed is not None:
            return self.fixed % fields
        random = dice.random
        return "".join([p if isinstance(p, str) else p[int(random() * len(p))] for p in self.parts]) % fields

    def fill(self, fields: Fields) -> str:
        """Fill in the fields of a wording that has no alternatives.

        Raises:
            ValueError: if it has alternatives.
        """
        if self.fixed is None:
            raise ValueError("a wording with alternatives needs dice")
        return self.fixed % fields


def _compiled(text: str) -> str:
    fixed = _FIELD.sub(r"%(\1)s", text.replace("%", "%%"))
    if re.search(r"[\[\]{}|]", fixed):
        raise ValueError(f"unmatched bracket or brace in the wording {text!r}")
    return fixed


def wordings(*texts: str) -> tuple[Wording, ...]:
    """Compile several ways to say the same thing."""
    return tuple(Wording(text) for text in texts)


def say(dice: Dice, ways: Sequence[Wording], fields: Fields) -> str:
    """Say it in one of several ways, as a sentence: with a capital."""
    text = ways[int(dice.random() * len(ways))](dice, fields)
    return text[0].upper() + text[1:]


def capital(text: str) -> str:
    """Give the text a capital initial and leave the rest alone."""
    return text[:1].upper() + text[1:]


def small_initial(text: str) -> str:
    """Give the text a small initial, for use inside a sentence; the caller keeps names away from it."""
    return text[:1].lower() + text[1:]


def a_or_an(phrase: str) -> str:
    """Put the right indefinite article before a phrase.

    >>> a_or_an("egg"), a_or_an("useful rope"), a_or_an("hour")
    ('an egg', 'a useful rope', 'an hour')
    """
    sounds_like_vowel = phrase[0] in "aeiouAEIOU" and not phrase.startswith(
        ("use", "uni", "one", "once", "eu")
    )
    return f"{'an' if sounds_like_vowel or phrase.startswith(('hour', 'honest')) else 'a'} {phrase}"


@dataclass(frozen=True, slots=True)
class Noun:
    """A thing that can be counted: its singular, its plural, and the singular with its article."""

    one: str
    many: str
    a: str

    @classmethod
    def of(cls, entry: str) -> Noun:
        """Read ``"apple"`` (regular plural) or ``"loaf/loaves"``."""
        one, _, many = entry.partition("/")
        return cls(one, many or one + "s", a_or_an(one))

    def fields(self, name: str) -> dict[str, str]:
        """Give the fields a wording needs: ``{thing}``, ``{things}`` and ``{a_thing}`` for the name "thing"."""
        return {name: self.one, f"{name}s": self.many, f"a_{name}": self.a}


def count(number: int, noun: Noun) -> str:
    """Count in digits: ``1 apple``, ``3 apples``."""
    return f"{number} {noun.one if number == 1 else noun.many}"


def listed(things: Sequence[str], last: str = "and") -> str:
    """Join things as English does: ``a, b and c``."""
    if len(things) == 1:
        return things[0]
    return f"{', '.join(things[:-1])} {last} {things[-1]}"
