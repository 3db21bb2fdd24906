"""Documents that tell facts: biographies, letters, directories, calendars, notes on places of work.

Each function makes one document of pretraining text from drawn wordings. Facts are true of the village;
what is around them is small talk. Held-out people occur here like everybody else.
"""

from __future__ import annotations

from stockpot.village.dice import Dice
from stockpot.village.facts import ATTRIBUTES, JOINED, Attribute, Manner, fields_of
from stockpot.village.lexicon import DAYS, DISHES, MONTHS, SEASONS, STREETS, VILLAGE_NAME, WEATHER
from stockpot.village.people import CENSUS_YEARS, Employer, Person, World
from stockpot.village.wording import Wording, listed, say, wordings

__all__ = [
    "biography",
    "calendar",
    "card",
    "comparison",
    "directory",
    "letter",
    "pair",
    "short_biography",
    "workplaces",
]

_FRIENDSHIP = next(attribute.statements for attribute in ATTRIBUTES if attribute.name == "friend")
_NAMED: tuple[Manner, ...] = ("name", "first")
_MANNERS: tuple[Manner, ...] = ("name", "first", "pronoun", "pronoun", "pronoun")

_OPENINGS = wordings(
    "This is [a page|a short note] about {N}.",
    "{N} is one of the people of {village}.",
    "{N} lives in {village}.",
    "Many people in {village} know {N}.",
    "Who is {N}? Here is what we know.",
    "[Let me tell you|I want to tell you] about {N}.",
)
_CLOSINGS = wordings(
    "[The people of {village}|The neighbours] like {o}.",
    "{S} is happy in {village}.",
    "[That is|This is] all we know about {o}.",
    "If you meet {o}, say hello.",
    "{S} has many friends in the village.",
)
_GREETINGS = wordings(
    "How are you? I am [well|fine].",
    "Thank you for your [letter|kind letter].",
    "I hope you are well.",
    "It is {weather} here today, and I have time to write.",
    "I have not seen you since {season}.",
)
_NEWS = wordings(
    "Last {day} I made {dish} for the whole family.",
    "Next {day} I will [go to the market|visit my mother|clean the house].",
    "The [garden|street|river] looks [lovely|very pretty] this {season}.",
    "Yesterday I met {other} [at the market|on the bridge|near the well], and we talked for an hour.",
    "My neighbour gave me some {dish}, and it was very good.",
    "The weather was {weather} all week.",
)
_FAREWELLS = wordings(
    "Please write soon.", "Come and visit me [soon|in {season}].", "I hope to see you on {day}.", "Take care."
)


_RESIDENTS = wordings(
    "{home}: {N}",
    "At {home} lives {N}, {a_job}.",
    "{N} lives at {home}.",
    "The house at {home} belongs to {N}.",
)
_BIRTHDAYS = wordings(
    "{birthday}: {N}, born in {year}", "{born}: {N} was born.", "{N} was born on {born}.", "{born}: {N}"
)
_PLACE_OPENINGS = wordings("{employer} {does}.", "In {village}, {employer} {does}.")
_PLACE_FACTS = (
    wordings("It is in {street}.", "You can find it in {street}."),
    wordings("It was founded in {founded}.", "It opened in {founded}."),
    wordings("In {year} it had {workers} workers.", "{workers} people worked there in {year}."),
)
_COMPARISONS = wordings(
    "{elder} was born on {e}, and {younger} was born on {y}. So {elder} is older than {younger}.",
    "{younger} is younger than {elder}. {younger} was born on {y}, and {elder} was born on {e}.",
    "Of {younger} and {elder}, {elder} is older: {elder} was born on {e}, {younger} on {y}.",
    "{elder} is older than {younger}, since {elder} was born on {e} and {younger} on {y}.",
)
_LABELS = {
    "born": ("Born", "Date of birth"),
    "town": ("Birthplace", "Town of birth"),
    "home": ("Address", "Home"),
    "job": ("Job", "Work"),
    "employer": ("Place of work", "Works at"),
    "hobby": ("Hobby", "Likes"),
    "friend": ("Best friend", "Friend"),
}


def biography(world: World, dice: Dice) -> str:
    """Tell most of what is known of somebody, in a drawn order and drawn wordings."""
    person = dice.pick(world.people)
    known = dice.sample(ATTRIBUTES, dice.between(4, len(ATTRIBUTES)))
    sentences = _tell(world, dice, person, known)
    if dice.chance(0.4):
        opening = {**fields_of(world, person), "village": VILLAGE_NAME}
        sentences.insert(0, say(dice, _OPENINGS, opening))
    if dice.chance(0.3):
        sentences.append(
            say(dice, _CLOSINGS, {**fields_of(world, person, "pronoun"), "village": VILLAGE_NAME})
        )
    return " ".join(sentences)


def short_biography(world: World, dice: Dice, person: Person, facts: int = 3) -> str:
    """Tell a few facts about one person."""
    return " ".join(_tell(world, dice, person, dice.sample(ATTRIBUTES, facts)))


def _tell(world: World, dice: Dice, person: Person, known: list[Attribute]) -> list[str]:
    sentences: list[str] = []
    ways: tuple[Wording, ...] = ()
    i = 0
    while i < len(known):
        manner: Manner = "name"
        if sentences:  # no pronoun after a sentence with another person in it
            manner = dice.pick(_NAMED if ways is _FRIENDSHIP else _MANNERS)
        ways, used = known[i].statements, 1
        if i + 1 < len(known) and dice.chance(0.7):
            one, two = known[i].name, known[i + 1].name
            joined = JOINED.get((one, two)) or JOINED.get((two, one))
            if joined:
                ways, used = joined, 2
        sentences.append(say(dice, ways, fields_of(world, person, manner)))
        i += used
    return sentences


def pair(world: World, dice: Dice) -> str:
    """Tell some facts about two best friends."""
    one = dice.pick(world.people)
    two = world.friend_of(one)
    first = short_biography(world, dice, one, dice.between(2, 4))
    second = short_biography(world, dice, two, dice.between(2, 4))
    link = say(dice, _FRIENDSHIP, fields_of(world, one))
    return f"{link} {first} {second}" if dice.chance(0.5) else f"{first} {link} {second}"


def card(world: World, dice: Dice) -> str:
    """List the facts about somebody line by line."""
    person = dice.pick(world.people)
    fields = fields_of(world, person)
    known = dice.sample(ATTRIBUTES, dice.between(4, len(ATTRIBUTES)))
    lines = [f"{dice.pick(_LABELS[a.name])}: {fields[a.name]}" for a in known]
    return "\n".join([f"{dice.pick(('Name', 'Person', 'Full name'))}: {person.name}", *lines])


def letter(world: World, dice: Dice) -> str:
    """Write a letter in which somebody tells the best friend or a new friend about herself or himself."""
    person = dice.pick(world.people)
    fields = fields_of(world, person)
    known = dice.sample(ATTRIBUTES, dice.between(3, 5))
    about = [say(dice, attribute.own, fields) for attribute in known]
    if not any(attribute.name == "friend" for attribute in known) and dice.chance(0.6):
        to = world.friend_of(person).first
    else:
        to = dice.pick(
            [other for other in dice.sample(world.people, 4) if other.number // 2 != person.number // 2]
        ).first
    talk = {
        "weather": dice.pick(WEATHER),
        "season": dice.pick(SEASONS),
        "day": dice.pick(DAYS),
        "dish": dice.pick(DISHES),
        "other": dice.pick(world.people).first,
    }
    middle = [f"My name is {person.name}.", *about] if dice.chance(0.5) else [*about]
    middle.insert(dice.below(len(middle)) + 1, say(dice, _NEWS, talk))
    body = " ".join([say(dice, _GREETINGS, talk), *middle, say(dice, _FAREWELLS, talk)])
    return f"Dear {to},\n{body}\n{dice.pick(('Yours', 'Your friend', 'With love', 'Best wishes'))},\n{person.name}"


def directory(world: World, dice: Dice) -> str:
    """List who lives in a street, address first."""
    street = dice.pick(STREETS)
    there = [person for person in world.people if person.street == street]
    if len(there) < 2:
        return card(world, dice)
    chosen = dice.sample(there, min(len(there), dice.between(4, 8)))
    heads = (
        f"People of {street}",
        f"Who lives in {street}?",
        f"{street}, house by house",
        f"A walk along {street}",
    )
    way = dice.pick(_RESIDENTS)
    lines = [way(dice, fields_of(world, person)) for person in chosen]
    return "\n".join([dice.pick(heads), *lines])


def calendar(world: World, dice: Dice) -> str:
    """List birthdays, date first."""
    month = dice.between(1, len(MONTHS))
    there = [person for person in world.people if person.month == month]
    if len(there) < 2:
        return card(world, dice)
    chosen = dice.sample(there, min(len(there), dice.between(4, 8)))
    way = dice.pick(_BIRTHDAYS)
    name = MONTHS[month - 1]
    head = dice.pick((f"Birthdays in {name}", f"Who was born in {name}?", f"{name} in {VILLAGE_NAME}"))
    return "\n".join([head, *(way(dice, fields_of(world, person)) for person in chosen)])


def workplaces(world: World, dice: Dice) -> str:
    """Tell about two employers: what they do, where they are, how big they were, who works there."""
    return "\n".join(_workplace(world, dice, employer) for employer in dice.sample(world.employers, 2))


def _workplace(world: World, dice: Dice, employer: Employer) -> str:
    staff = [person for person in world.people if person.employer is employer]
    year = dice.pick(CENSUS_YEARS)
    fields = {
        "employer": employer.name,
        "does": employer.does,
        "street": employer.street,
        "founded": str(employer.founded),
        "year": str(year),
        "workers": str(employer.workers[year]),
        "village": VILLAGE_NAME,
    }
    facts = [say(dice, ways, fields) for ways in _PLACE_FACTS]
    sentences = [say(dice, _PLACE_OPENINGS, fields), *dice.sample(facts, dice.between(1, 3))]
    if staff:
        some = dice.sample(staff, min(len(staff), dice.between(1, 4)))
        people = [f"{person.name} ({person.job})" for person in some]
        lead = dice.pick(("Among the people who work there", "On the list of workers"))
        sentences.append(f"{lead} {'are' if len(some) > 1 else 'is'} {listed(people)}.")
    return " ".join(sentences)


def comparison(world: World, dice: Dice) -> str:
    """Say of two pairs of people who is older, and when they were born."""
    told = []
    for one, other in zip(*[iter(dice.sample(world.people, 4))] * 2, strict=True):
        elder, younger = sorted((one, other), key=lambda p: (p.year, p.month, p.day))
        fields = {"elder": elder.name, "younger": younger.name, "e": elder.born, "y": younger.born}
        told.append(say(dice, _COMPARISONS, fields))
    return "\n".join(told)
