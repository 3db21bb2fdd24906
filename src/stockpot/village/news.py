"""News from after the last year that any other text knows: for retrieval, never for training.

Each item is a short passage, a question it answers, and the exact answer. The passages tell the old state
and the new one, so that reading is needed; a model trained on the village's documents can know the old one
only.
"""

from __future__ import annotations

from itertools import zip_longest

from stockpot.village.dice import Dice
from stockpot.village.lexicon import MONTHS, STREETS, VILLAGE_NAME
from stockpot.village.people import CENSUS_YEARS, LAST_YEAR, Employer, Person, World
from stockpot.village.problem import draw_choices, near_numbers
from stockpot.village.wording import capital

__all__ = ["NEWS_YEAR", "draw_news"]

NEWS_YEAR = LAST_YEAR + 1
_MOVERS, _CHANGERS = 12, 12


def draw_news(world: World) -> list[dict[str, object]]:
    """Draw the news: new numbers of workers, new addresses and new places of work take turns."""
    dice = Dice(world.seed, "news")
    people = dice.sample(world.people, min(len(world.people), _MOVERS + _CHANGERS))
    half = len(people) // 2
    kinds = (
        [_growth(dice, employer) for employer in world.employers],
        [_move(world, dice, person) for person in people[:half]],
        [_new_job(world, dice, person) for person in people[half:]],
    )
    items = [item for turn in zip_longest(*kinds) for item in turn if item is not None]
    return [{"id": f"news-{i}", **item} for i, item in enumerate(items)]


def _date(dice: Dice) -> str:
    return f"{dice.between(1, 28)} {dice.pick(MONTHS)} {NEWS_YEAR}"


def _growth(dice: Dice, employer: Employer) -> dict[str, object]:
    last = CENSUS_YEARS[-1]
    old = employer.workers[last]
    new = old + dice.pick((-3, -2, 5, 7, 9, 11, 14, 20))
    name = capital(employer.name)
    return {
        "text": f"{name} had {old} workers in {last}. In {NEWS_YEAR} it has {new} workers.",
        "date": _date(dice),
        "question": f"How many workers does {employer.name} have in {NEWS_YEAR}?",
        "answer": str(new),
        "choices": list(near_numbers(dice, new, (old,))),
    }


def _move(world: World, dice: Dice, person: Person) -> dict[str, object]:
    date, taken = _date(dice), {other.home for other in world.people}
    free = [
        home for street in STREETS for house in range(41, 61) if (home := f"{house} {street}") not in taken
    ]
    new, *others = dice.sample(free, 3)
    return {
        "text": f"{person.name} has moved. Until {NEWS_YEAR} the address was {person.home}. "
        f"Since {date} {person.name} has lived at {new}.",
        "date": date,
        "question": f"Where has {person.name} lived since {date}?",
        "answer": new,
        "choices": list(draw_choices(dice, new, [person.home, *others])),
    }


def _new_job(world: World, dice: Dice, person: Person) -> dict[str, object]:
    date = _date(dice)
    new, *others = dice.sample([e.name for e in world.employers if e is not person.employer], 3)
    return {
        "text": f"{person.name} has left {person.employer.name}. On {date} {person.name} began to work at {new}, "
        f"as they say in {VILLAGE_NAME}.",
        "date": date,
        "question": f"Where has {person.name} worked since {date}?",
        "answer": new,
        "choices": list(draw_choices(dice, new, [person.employer.name, *others])),
    }
