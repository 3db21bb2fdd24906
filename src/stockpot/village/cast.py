"""Who acts in stories, sums and puzzles: first names of the village with their pronouns.

Actors carry first names only, so that what happens to them says nothing about the people whose facts are
asked for.
"""

from __future__ import annotations

from collections.abc import Mapping

from stockpot.village.dice import Dice
from stockpot.village.lexicon import MEN, WOMEN

__all__ = ["cast", "cast_one"]

_ROLES = ("a", "b", "c")
_NAMES = (*((name, "she") for name in WOMEN), *((name, "he") for name in MEN))


def _role_fields(role: str, name: str, he: str) -> dict[str, str]:
    his, him = ("her", "her") if he == "she" else ("his", "him")
    return {
        role: name,
        f"{role}_he": he,
        f"{role}_He": he.capitalize(),
        f"{role}_his": his,
        f"{role}_His": his.capitalize(),
        f"{role}_him": him,
    }


_FIELDS = {role: tuple(_role_fields(role, *entry) for entry in _NAMES) for role in _ROLES}


def cast(dice: Dice, size: int = 2) -> dict[str, str]:
    """Draw different actors a, b, c; their fields are ``{a} {a_he} {a_He} {a_his} {a_His} {a_him}`` and so on."""
    fields: dict[str, str] = {}
    for role, place in zip(_ROLES, dice.sample(range(len(_NAMES)), size), strict=False):
        fields.update(_FIELDS[role][place])
    return fields


def cast_one(dice: Dice) -> Mapping[str, str]:
    """Draw one actor, a; the result is shared and not to be changed."""
    return _FIELDS["a"][dice.below(len(_NAMES))]
