"""Who lives in the village, and where they work: drawn once from the seed, then fixed.

One `World` holds the people and their employers. This file decides the facts and checks that they can be
told apart (names, birth dates and addresses are unique; best friends come in pairs); it writes no sentence.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from stockpot.errors import ConfigError
from stockpot.village.dice import Dice
from stockpot.village.lexicon import HOBBIES, LAST_NAMES, MEN, MONTHS, STREETS, TOWNS, WOMEN

__all__ = ["CENSUS_YEARS", "LAST_YEAR", "Employer", "Person", "World", "draw_world"]

LAST_YEAR = 2024
"""The last year the pretraining text knows of."""

CENSUS_YEARS = (2005, 2010, 2015, 2020)
"""The years whose numbers of workers are known."""

_MIN_PEOPLE, _MAX_PEOPLE = 20, 400
_HELD_OUT_SHARE = 5  # one person in five is never asked about in training
_HOUSES = 40  # a street

_EMPLOYERS = (  # name, what it makes or does, the jobs there
    ("the Red Mill", "grinds flour", ("miller", "clerk", "driver")),
    ("the Corner Bakery", "bakes bread", ("baker", "seller", "driver")),
    ("the River Dairy", "makes cheese and butter", ("cheese maker", "clerk", "driver")),
    ("the Village School", "teaches the children", ("teacher", "cook", "gardener")),
    ("the Hill Farm", "grows wheat and keeps sheep", ("farmer", "shepherd", "cook")),
    ("the Old Forge", "makes tools and horseshoes", ("smith", "clerk", "seller")),
    ("the Green Nursery", "grows flowers and trees", ("gardener", "seller", "driver")),
    ("the Little Clinic", "cares for the sick", ("nurse", "doctor", "clerk")),
    ("the Public Library", "lends books", ("librarian", "clerk", "teacher")),
    ("the Post Office", "brings the letters", ("mail carrier", "clerk", "driver")),
    ("the North Sawmill", "cuts wood", ("carpenter", "driver", "clerk")),
    ("the Golden Goose Inn", "serves food and rents rooms", ("cook", "waiter", "musician")),
    ("the Weaving House", "makes cloth", ("weaver", "tailor", "seller")),
    ("the Blue Pottery", "makes cups and bowls", ("potter", "painter", "seller")),
    ("the Boat Yard", "builds boats", ("boat builder", "painter", "carpenter")),
    ("the Honey House", "sells honey and candles", ("beekeeper", "seller", "candle maker")),
)


@dataclass(frozen=True, slots=True, eq=False)
class Employer:
    """A place of work.

    Attributes:
        name: with its article, ``the Red Mill``.
        does: what it does, as a verb phrase.
        jobs: the jobs there.
        street: where it is.
        founded: the year it opened.
        workers: number of workers by year, for `CENSUS_YEARS`.
    """

    name: str
    does: str
    jobs: tuple[str, ...]
    street: str
    founded: int
    workers: dict[int, int]


@dataclass(frozen=True, slots=True, eq=False)
class Person:
    """One inhabitant.

    Attributes:
        number: position in `World.people`.
        friend: position of the best friend, whose best friend is this person.
        is_held_out: True if no training chat or question page is about this person.
    """

    number: int
    first: str
    last: str
    gender: Literal["she", "he"]
    day: int
    month: int
    year: int
    town: str
    house: int
    street: str
    job: str
    employer: Employer
    hobby: str
    friend: int
    is_held_out: bool

    @property
    def name(self) -> str:
        """First and last name."""
        return f"{self.first} {self.last}"

    @property
    def birthday(self) -> str:
        """Day and month, ``14 March``."""
        return f"{self.day} {MONTHS[self.month - 1]}"

    @property
    def born(self) -> str:
        """The date of birth, ``14 March 1979``."""
        return f"{self.birthday} {self.year}"

    @property
    def home(self) -> str:
        """The address, ``12 Mill Lane``."""
        return f"{self.house} {self.street}"


@dataclass(frozen=True, eq=False)
class World:
    """Everybody and every employer of one village."""

    seed: int
    people: tuple[Person, ...]
    employers: tuple[Employer, ...]

    @cached_property
    def asked(self) -> tuple[Person, ...]:
        """People whom training chats ask about."""
        return tuple(person for person in self.people if not person.is_held_out)

    @cached_property
    def held_out(self) -> tuple[Person, ...]:
        """People who occur in pretraining text only."""
        return tuple(person for person in self.people if person.is_held_out)

    @cached_property
    def names(self) -> frozenset[str]:
        """The names of all: anybody else is a stranger."""
        return frozenset(person.name for person in self.people)

    def friend_of(self, person: Person) -> Person:
        """Give the best friend."""
        return self.people[person.friend]


def draw_world(seed: int, people: int) -> World:
    """Draw the inhabitants and their employers.

    Args:
        seed: equal seeds give equal villages.
        people: an even number from 20 to 400.

    Raises:
        ConfigError: if the number of people is not possible.
    """
    if not _MIN_PEOPLE <= people <= _MAX_PEOPLE or people % 2:
        raise ConfigError(
            f"A village cannot have {people} people.",
            f"Give an even number from {_MIN_PEOPLE} to {_MAX_PEOPLE}.",
        )
    dice = Dice(seed, "world")
    employers = tuple(_draw_employer(dice, *entry) for entry in _EMPLOYERS)
    return World(seed, _draw_people(dice, people, employers), employers)


def _draw_employer(dice: Dice, name: str, does: str, jobs: tuple[str, ...]) -> Employer:
    size = dice.between(8, 40)
    workers = {}
    for year in CENSUS_YEARS:
        workers[year] = size
        size = max(4, size + dice.pick((-6, -4, -3, -2, 2, 3, 4, 6, 8)))
    return Employer(name, does, jobs, dice.pick(STREETS), dice.between(1850, 1999), workers)


def _draw_people(dice: Dice, number: int, employers: tuple[Employer, ...]) -> tuple[Person, ...]:
    names = _draw_names(dice, number)
    dates = dice.sample(
        [(d, m, y) for y in range(1935, 2004) for m in range(1, 13) for d in range(1, 29)], number
    )
    homes = dice.sample([(house, street) for street in STREETS for house in range(1, _HOUSES + 1)], number)
    held_out = number // _HELD_OUT_SHARE // 2 * 2  # even: friends are on the same side
    people = []
    for i, (gender, first, last) in enumerate(names):
        (day, month, year), (house, street), employer = dates[i], homes[i], dice.pick(employers)
        people.append(
            Person(
                number=i,
                first=first,
                last=last,
                gender=gender,
                day=day,
                month=month,
                year=year,
                town=dice.pick(TOWNS),
                house=house,
                street=street,
                job=dice.pick(employer.jobs),
                employer=employer,
                hobby=dice.pick(HOBBIES),
                friend=i ^ 1,
                is_held_out=i < held_out,
            )
        )
    return tuple(people)


def _draw_names(dice: Dice, number: int) -> list[tuple[Literal["she", "he"], str, str]]:
    """Draw different full names, with first names spread as evenly as possible."""
    women = [("she", first) for first in dice.shuffled(WOMEN)]
    men = [("he", first) for first in dice.shuffled(MEN)]
    firsts = [one for pair in zip(women, men, strict=True) for one in pair]
    names: list[tuple[Literal["she", "he"], str, str]] = []
    taken = set()
    while len(names) < number:
        gender, first = firsts[len(names) % len(firsts)]
        last = dice.pick(LAST_NAMES)
        if (first, last) not in taken:
            taken.add((first, last))
            names.append(("she" if gender == "she" else "he", first, last))
    return [names[i] for i in dice.shuffled(range(number))]
