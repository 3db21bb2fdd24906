"""What is known of a person, in words: every wording of every fact, and the questions about them.

A fact is an `Attribute`: statements about somebody (`{S}` is the subject, as a name or a pronoun),
sentences a person says of herself, questions, and two answers, short and whole. The file decides the
wordings and which of them are kept for evaluation; people.py decides the facts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from stockpot.village.dice import Dice
from stockpot.village.people import Person, World
from stockpot.village.problem import HeldOut, Problem, draw_choices
from stockpot.village.wording import Wording, a_or_an, capital, wordings

__all__ = [
    "ATTRIBUTES",
    "JOINED",
    "Attribute",
    "Manner",
    "ask_fact",
    "fact_problem",
    "fields_of",
    "older_problem",
    "value_of",
    "who_problem",
]

Manner = Literal["name", "first", "pronoun"]


@dataclass(frozen=True)
class Attribute:
    """One kind of fact and its wordings.

    Attributes:
        name: the key of its value among the fields.
        statements: said by others: ``{S} {s} {o} {P} {p}`` stand for the person (capital, inside a sentence,
            object, possessive), ``{his}`` always for the possessive pronoun.
        own: said by the person.
        questions: asked in training.
        kept_questions: asked in evaluation only.
        sentence: the whole answer.
    """

    name: str
    statements: tuple[Wording, ...]
    own: tuple[Wording, ...]
    questions: tuple[Wording, ...]
    kept_questions: tuple[Wording, ...]
    sentence: Wording


ATTRIBUTES: tuple[Attribute, ...] = (
    Attribute(
        "born",
        wordings(
            "{S} was born on {born}.",
            "On {born}, {s} was born.",
            "{P} date of birth is {born}.",
            "The date of {p} birth is {born}.",
            "{P} birthday is on {birthday}, and {he} was born in {year}.",
            "It was on {born} that {s} was born.",
            "{S} was born in {year}, on {birthday}.",
            "{S} came into the world on {born}.",
        ),
        wordings(
            "I was born on {born}.",
            "My date of birth is {born}.",
            "My birthday is on {birthday}, and I was born in {year}.",
        ),
        wordings(
            "When was {N} born?",
            "What is the date of birth of {N}?",
            "On what date was {N} born?",
            "What is {N}'s date of birth?",
            "Can you tell me when {N} was born?",
        ),
        wordings("On which day did {N} come into the world?", "Please give me the date of birth of {N}."),
        Wording("{N} was born on {born}."),
    ),
    Attribute(
        "town",
        wordings(
            "{S} was born in {town}.",
            "{S} comes from {town}.",
            "{P} birthplace is {town}.",
            "{S} is from {town}.",
            "The place of {p} birth is {town}.",
            "The town of {town} is where {s} was born.",
            "{P} family comes from {town}, and {he} was born there.",
        ),
        wordings("I was born in {town}.", "I come from {town}.", "My birthplace is {town}."),
        wordings(
            "Where was {N} born?",
            "In which town was {N} born?",
            "What is the birthplace of {N}?",
            "Which town does {N} come from?",
            "Can you tell me where {N} was born?",
        ),
        wordings("Which town is the birthplace of {N}?", "Please tell me the town {N} comes from."),
        Wording("{N} was born in {town}."),
    ),
    Attribute(
        "home",
        wordings(
            "{S} lives at {home}.",
            "{P} house is at {home}.",
            "{P} address is {home}.",
            "{S} has a [small |]house at {home}.",
            "The house at {home} belongs to {o}.",
            "The house where {s} lives is at {home}.",
            "You can find {o} at {home}.",
            "{P} home is at {home}.",
        ),
        wordings("I live at {home}.", "My house is at {home}.", "My address is {home}."),
        wordings(
            "Where does {N} live?",
            "What is the address of {N}?",
            "At which address does {N} live?",
            "What is {N}'s address?",
            "Can you tell me where {N} lives?",
        ),
        wordings("Which house does {N} live in?", "Please give me the address of {N}."),
        Wording("{N} lives at {home}."),
    ),
    Attribute(
        "job",
        wordings(
            "{S} is {a_job}.",
            "{S} works as {a_job}.",
            "{S} earns {his} living as {a_job}.",
            "{P} job is to be {a_job}.",
            "As for work, {s} is {a_job}.",
            "{S} has been {a_job} for many years.",
            "People know {o} as {a_job}.",
        ),
        wordings("I am {a_job}.", "I work as {a_job}.", "I earn my living as {a_job}."),
        wordings(
            "What is {N}'s job?",
            "What does {N} do for a living?",
            "What is the job of {N}?",
            "What does {N} work as?",
            "Can you tell me the job of {N}?",
        ),
        wordings("How does {N} earn a living?", "Please tell me what {N} does for work."),
        Wording("{N} is {a_job}."),
    ),
    Attribute(
        "employer",
        wordings(
            "{S} works at {employer}.",
            "{P} place of work is {employer}.",
            "{S} goes to work at {employer} every [day|morning].",
            "{S} has a job at {employer}.",
            "{Employer} is where {s} works.",
            "{S} earns {his} money at {employer}.",
            "On working days, {s} is at {employer}.",
        ),
        wordings("I work at {employer}.", "I have a job at {employer}.", "My place of work is {employer}."),
        wordings(
            "Where does {N} work?",
            "What is {N}'s place of work?",
            "At which place does {N} work?",
            "What is the place of work of {N}?",
            "Can you tell me where {N} works?",
        ),
        wordings("Where does {N} have a job?", "Please tell me the place where {N} works."),
        Wording("{N} works at {employer}."),
    ),
    Attribute(
        "hobby",
        wordings(
            "{S} likes {hobby}.",
            "In {his} free time, {s} enjoys {hobby}.",
            "{P} hobby is {hobby}.",
            "After work, {s} likes {hobby}.",
            "Nothing makes {o} happier than {hobby}.",
            "{S} loves {hobby}.",
            "On Sundays, {s} enjoys {hobby}.",
        ),
        wordings("I like {hobby}.", "My hobby is {hobby}.", "In my free time, I enjoy {hobby}."),
        wordings(
            "What is {N}'s hobby?",
            "What does {N} like to do?",
            "What is the hobby of {N}?",
            "What does {N} enjoy after work?",
            "Can you tell me the hobby of {N}?",
        ),
        wordings("What does {N} enjoy in the free hours?", "Please tell me what {N} likes doing."),
        Wording("{N} likes {hobby}."),
    ),
    Attribute(
        "friend",
        wordings(
            "{P} best friend is {friend}.",
            "{S} and {friend} are best friends.",
            "{Friend} is {p} best friend.",
            "{S} has a best friend, {friend}.",
            "{P} best friend in the village is {friend}.",
            "{S} spends many evenings with {his} best friend, {friend}.",
            "The best friend {s} has is {friend}.",
        ),
        wordings(
            "My best friend is {friend}.", "{Friend} is my best friend.", "I have a best friend, {friend}."
        ),
        wordings(
            "Who is {N}'s best friend?",
            "Who is the best friend of {N}?",
            "What is the name of {N}'s best friend?",
            "Which person is the best friend of {N}?",
            "Can you tell me who the best friend of {N} is?",
        ),
        wordings("Who is the person {N} likes best?", "Please name the best friend of {N}."),
        Wording("{P} best friend is {friend}."),
    ),
)

JOINED: Mapping[tuple[str, str], tuple[Wording, ...]] = {
    ("born", "town"): wordings(
        "{S} was born in {town} on {born}.",
        "{S} was born on {born} in {town}.",
        "Born in {town} on {born}, {s} now lives in our village.",
    ),
    ("job", "employer"): wordings(
        "{S} works as {a_job} at {employer}.",
        "{S} is {a_job} at {employer}.",
        "{Employer} is where {s} works as {a_job}.",
    ),
}
"""Two facts in one sentence."""

_WHO = (  # what is asked, and how
    (
        "born",
        wordings(
            "Who was born on {born}?", "Which person was born on {born}?", "Whose date of birth is {born}?"
        ),
    ),
    ("home", wordings("Who lives at {home}?", "Which person lives at {home}?", "Whose address is {home}?")),
)
_OLDER = wordings(
    "Who is older, {one} or {other}?",
    "Which of the two is older: {one} or {other}?",
    "Who was born first, {one} or {other}?",
)


def fields_of(world: World, person: Person, manner: Manner = "name") -> Mapping[str, str]:
    """Give the fields of all wordings about a person, who is called by full name, first name or a pronoun."""
    return _tables(world)[manner][person.number]


@lru_cache(maxsize=4)
def _tables(world: World) -> dict[Manner, tuple[dict[str, str], ...]]:
    manners: tuple[Manner, ...] = ("name", "first", "pronoun")
    return {manner: tuple(_fields(world, person, manner) for person in world.people) for manner in manners}


def _fields(world: World, person: Person, manner: Manner) -> dict[str, str]:
    is_pronoun = manner == "pronoun"
    subject = {"name": person.name, "first": person.first, "pronoun": person.gender}[manner]
    his, him = ("her", "her") if person.gender == "she" else ("his", "him")
    possessive = his if is_pronoun else f"{subject}'s"
    return {
        "N": person.name,
        "F": person.first,
        "S": capital(subject),
        "s": subject,
        "o": him if is_pronoun else subject,
        "P": capital(possessive),
        "p": possessive,
        "he": person.gender,
        "his": his,
        "born": person.born,
        "birthday": person.birthday,
        "year": str(person.year),
        "town": person.town,
        "home": person.home,
        "street": person.street,
        "job": person.job,
        "a_job": a_or_an(person.job),
        "employer": person.employer.name,
        "Employer": capital(person.employer.name),
        "hobby": person.hobby,
        "friend": world.friend_of(person).name,
        "Friend": world.friend_of(person).name,
    }


def value_of(world: World, person: Person, attribute: str) -> str:
    """Give a fact as a short answer."""
    return fields_of(world, person)[attribute]


def ask_fact(world: World, dice: Dice, person: Person, attribute: Attribute) -> tuple[str, str]:
    """Ask for one fact about a person in a drawn training wording; give the question and the short answer."""
    fields = fields_of(world, person)
    return dice.pick(attribute.questions)(dice, fields), fields[attribute.name]


def fact_problem(
    world: World, dice: Dice, person: Person, attribute: Attribute, *, kept: Wording | None = None
) -> Problem:
    """Ask for one fact about a person; ``kept``: in this wording, which training never shows."""
    fields = fields_of(world, person)
    held_out: HeldOut = "template" if kept else "person" if person.is_held_out else "none"
    others = [value_of(world, other, attribute.name) for other in dice.sample(world.people, 16)]
    answer = fields[attribute.name]
    return Problem(
        kind="facts",
        question=(kept or dice.pick(attribute.questions))(dice, fields),
        answer=answer,
        sentence=attribute.sentence.fill(fields),
        choices=draw_choices(dice, answer, [other for other in others if other != person.name]),
        held_out=held_out,
    )


def who_problem(world: World, dice: Dice, person: Person, way: int) -> Problem:
    """Ask who it is that a fact is true of: the opposite direction of every training question."""
    name, questions = _WHO[way % len(_WHO)]
    fields = fields_of(world, person)
    others = [other.name for other in dice.sample(world.people, 8)]
    sentence = next(a for a in ATTRIBUTES if a.name == name).sentence.fill(fields)
    return Problem(
        kind="who",
        question=questions[way // len(_WHO) % len(questions)](dice, fields),
        answer=person.name,
        sentence=sentence,
        choices=draw_choices(dice, person.name, others),
        held_out="task",
    )


def older_problem(dice: Dice, one: Person, other: Person) -> Problem:
    """Ask which of two people, born in different years, is older."""
    elder, younger = (one, other) if one.year < other.year else (other, one)
    return Problem(
        kind="older",
        question=dice.pick(_OLDER)(dice, {"one": one.name, "other": other.name}),
        answer=elder.name,
        sentence=f"{elder.name} is older than {younger.name}.",
        choices=tuple(dice.shuffled([one.name, other.name])),
        held_out="task",
    )
