"""Notices about strangers: what was, what is now, and questions that only the notice can answer.

Everything in a notice is drawn for it alone: its people live in no village that a model could know, so its questions have to
be answered by reading. The village's news (news.py) tell the same about its own people, in wordings that never occur here, and
are asked about in the same ways.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from stockpot.village.dice import Dice, Side, draw_on
from stockpot.village.lexicon import DAYS, GOODS, LAST_NAMES, MEN, MONTHS, STREETS, TOWNS, WOMEN
from stockpot.village.people import LAST_YEAR, World
from stockpot.village.problem import Problem, draw_choices, near_numbers
from stockpot.village.wording import Wording, capital, say, wordings

__all__ = ["notice_problem", "notice_tale"]

_FIRST_NAMES = (*WOMEN, *MEN)
_EVENTS = ("the fair", "the concert", "the dance", "the market", "the meeting", "the school play", "the race")
_LAST_HOUSE, _FIRST_YEAR = 60, 1950


@dataclass(frozen=True, slots=True)
class _Change:
    """Something that became something else; its fields hold the two states as ``{old}`` and ``{new}``.

    Attributes:
        about: who or what changed; notices about different ones can stand beside each other.
        others: states of its kind that the notice does not tell.
    """

    about: str
    fields: dict[str, str]
    others: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Kind:
    """How changes of a kind are drawn, told, asked about and stated; ``kept`` is what training never shows."""

    draw: Callable[[World, Dice], _Change]
    told: tuple[Wording, ...]
    now: tuple[Wording, ...]
    before: tuple[Wording, ...]
    kept: tuple[Wording, ...]
    is_so: Wording
    was_so: Wording


def _stranger(world: World, dice: Dice) -> str:
    """Draw the name of somebody who is not of the village."""
    while (name := f"{dice.pick(_FIRST_NAMES)} {dice.pick(LAST_NAMES)}") in world.names:
        pass
    return name


def _date(dice: Dice) -> str:
    return f"{dice.between(1, 28)} {dice.pick(MONTHS)}"


def _address(dice: Dice) -> str:
    return f"{dice.between(1, _LAST_HOUSE)} {dice.pick(STREETS)}"


def _of(about: str, dice: Dice, states: Sequence[str], **fields: str) -> _Change:
    old, new, *others = states
    return _Change(about, {"N": about, "old": old, "new": new, "date": _date(dice), **fields}, tuple(others))


def _move(world: World, dice: Dice) -> _Change:
    return _of(_stranger(world, dice), dice, list(dict.fromkeys(_address(dice) for _ in range(6))))


def _job(world: World, dice: Dice) -> _Change:
    places = dice.sample([employer.name for employer in world.employers], 5)
    return _of(_stranger(world, dice), dice, places)


def _town(world: World, dice: Dice) -> _Change:
    return _of(_stranger(world, dice), dice, dice.sample(TOWNS, 5))


def _count(world: World, dice: Dice) -> _Change:
    """Count the workers of a house elsewhere: not one of the village's own numbers."""
    place = f"{dice.pick(world.employers).name} in {dice.pick(TOWNS)}"
    number, early = dice.between(6, 60), dice.between(_FIRST_YEAR, LAST_YEAR - 9)
    new = number + dice.pick((-3, -2, -1, 2, 3, 5, 7, 9, 12, 16))
    near = near_numbers(dice, new, (number,))
    states = [str(number), str(new), *(one for one in near if one not in (str(number), str(new)))]
    return _of(place, dice, states, y=str(early), z=str(early + dice.between(1, 9)))


def _price(world: World, dice: Dice) -> _Change:
    thing, number = dice.pick(GOODS), dice.between(5, 60)
    new = number + dice.pick((-2, -1, 1, 2, 3, 4, 6))
    near = near_numbers(dice, new, (number,))
    states = [str(number), str(new), *(one for one in near if one not in (str(number), str(new)))]
    return _of(thing.a, dice, states, T=dice.pick(TOWNS))


def _day(world: World, dice: Dice) -> _Change:
    return _of(f"{dice.pick(_EVENTS)} in {dice.pick(TOWNS)}", dice, dice.sample(DAYS, 5))


_KINDS: tuple[tuple[int, _Kind], ...] = (  # shares, and of which kind
    (
        3,
        _Kind(
            _move,
            wordings(
                "{N} [used to live|lived] at {old}. [Now|Today] {N} lives at {new}.",
                "{N} moved from {old} to {new} on {date}.",
                "On {date} {N} moved to {new}. The old address was {old}.",
                "The address of {N} is {new} now. [Before that|Earlier] it was {old}.",
                "{N} has a new address: {new}. The letters no longer go to {old}.",
                "Until {date} {N} lived at {old}, and then at {new}.",
                "{N} left {old} on {date} and has been at {new} from then on.",
                "You find {N} at {new}, no longer at {old}.",
            ),
            wordings(
                "Where does {N} live now?",
                "What is the new address of {N}?",
                "Where does {N} live?",
                "At which address does {N} live now?",
                "Where has {N} lived since {date}?",
            ),
            wordings("Where did {N} live before?", "What was the old address of {N}?"),
            wordings("Which address does {N} have today?", "Where do I find the house of {N}?"),
            Wording("{N} lives at {new}."),
            Wording("{N} lived at {old}."),
        ),
    ),
    (
        2,
        _Kind(
            _job,
            wordings(
                "{N} worked at {old} until {date}. Now {N} works at {new}.",
                "On {date} {N} went from {old} to {new} to work there.",
                "{N} works at {new} now and no longer at {old}.",
                "{N} took work at {new} after some years at {old}.",
                "{N} has a new place of work, {new}. Before that it was {old}.",
                "{N} said goodbye to {old} on {date} and works at {new}.",
                "{old} lost {N} to {new} on {date}.",
            ),
            wordings(
                "Where does {N} work now?",
                "Where does {N} work?",
                "What is the new place of work of {N}?",
                "Where has {N} worked since {date}?",
            ),
            wordings("Where did {N} work before?", "What was the old place of work of {N}?"),
            wordings("Which place pays {N} today?", "Where do I find {N} at work?"),
            Wording("{N} works at {new}."),
            Wording("{N} worked at {old}."),
        ),
    ),
    (
        1,
        _Kind(
            _town,
            wordings(
                "{N} left {old} on {date} and went to {new}.",
                "{N} lived in {old}. [Now|Today] {N} lives in {new}.",
                "{N} is in {new} now. The family stayed in {old}.",
            ),
            wordings("In which town is {N} now?", "To which town did {N} go?"),
            wordings("In which town was {N} before?", "From which town did {N} come?"),
            wordings("Which town is the home of {N} today?"),
            Wording("{N} is in {new}."),
            Wording("{N} was in {old}."),
        ),
    ),
    (
        3,
        _Kind(
            _count,
            wordings(
                "In {y} {old} people worked at {N}. In {z} there were {new}.",
                "In {z} {new} people worked at {N}. In {y} there were {old}.",
                "{N}: {old} workers in {y}, {new} workers in {z}.",
                "{N} had {new} workers in {z}. In {y} there were {old}.",
                "{N} had {old} workers in {y} and {new} in {z}.",
                "{N} had {new} workers in {z} and {old} in {y}.",
                "In {y} {N} had {old} workers, in {z} it had {new}.",
                "In {z} {N} had {new} workers, in {y} it had {old}.",
                "The number of workers at {N} went from {old} in {y} to {new} in {z}.",
            ),
            wordings(
                "How many workers did {N} have in {z}?",
                "How many people worked at {N} in {z}?",
                "How many workers does {N} have in {z}?",
            ),
            wordings("How many workers did {N} have in {y}?", "How many people worked at {N} in {y}?"),
            wordings("Give the number of workers at {N} in {z}."),
            Wording("{N} had {new} workers in {z}."),
            Wording("{N} had {old} workers in {y}."),
        ),
    ),
    (
        1,
        _Kind(
            _price,
            wordings(
                "In {T} {N} cost {old} coins until {date}. Now it costs {new} coins.",
                "Since {date} {N} costs {new} coins in {T}. It was {old} coins before.",
                "The price of {N} in {T} went from {old} to {new} coins.",
            ),
            wordings("What does {N} cost in {T} now?", "How many coins does {N} cost in {T}?"),
            wordings("What did {N} cost in {T} before?"),
            wordings("How much do I pay for {N} in {T} today?"),
            Wording("{N} costs {new} coins."),
            Wording("{N} cost {old} coins."),
        ),
    ),
    (
        1,
        _Kind(
            _day,
            wordings(
                "{N} was to be on {old}. Now it is on {new}.",
                "{N} is on {new} and not on {old}.",
                "Because of the rain {N} was moved from {old} to {new}.",
            ),
            wordings("On which day is {N} now?", "When is {N}?"),
            wordings("On which day was {N} to be at first?"),
            wordings("Which day is right for {N}?"),
            Wording("{N} is on {new}."),
            Wording("{N} was to be on {old}."),
        ),
    ),
)
_SLOTS = tuple(kind for share, kind in _KINDS for _ in range(share))
_ASKED = wordings("{text} {question}", "Read this: {text} {question}", "{text}\n{question}")
_PAIRS = wordings(
    "Question: {question}\nAnswer: {answer}", "Q: {question}\nA: {answer}", "{question} {Answer}."
)
_PAGES = wordings(
    "{text} {question} {sentence}",
    "{text} {question} {Answer}.",
    "{text}\nQuestion: {question}\nAnswer: {answer}",
    "{text}\nQ: {question}\nA: {answer}",
)
_BESIDE, _EARLIER, _TOGETHER = 0.35, 0.25, 0.3
"""Shares: of notices with another one beside them, of questions about the old state, of pages with all notices first."""


@dataclass(frozen=True, slots=True)
class _Notice:
    text: str
    question: str
    answer: str
    sentence: str
    others: tuple[str, ...]


def _notice(world: World, dice: Dice, *, kept: bool) -> _Notice:
    """Draw a change, tell it, some with another one of its kind beside it, and ask about one of its states."""
    kind = dice.pick(_SLOTS)
    change, told = kind.draw(world, dice), ""
    others: tuple[str, ...] = ()
    if dice.chance(_BESIDE):
        beside = kind.draw(world, dice)
        if beside.about != change.about and not _states(beside) & _states(change):
            told, others = say(dice, kind.told, beside.fields), tuple(sorted(_states(beside)))
    texts = dice.shuffled([say(dice, kind.told, change.fields), *([told] if told else [])])
    old, new = change.fields["old"], change.fields["new"]
    if not kept and dice.chance(_EARLIER):
        asked, answer, other, stated = kind.before, old, new, kind.was_so
    else:
        asked, answer, other, stated = (kind.kept if kept else kind.now), new, old, kind.is_so
    return _Notice(
        " ".join(texts),
        say(dice, asked, change.fields),
        answer,
        capital(stated.fill(change.fields)),
        (other, *others[:1], *change.others),
    )


def _states(change: _Change) -> set[str]:
    return {change.fields["old"], change.fields["new"]}


def _draw(world: World, dice: Dice, side: Side, *, kept: bool = False) -> _Notice:
    return draw_on(side, lambda: _notice(world, dice, kept=kept), lambda notice: notice.text)


def notice_problem(world: World, dice: Dice, side: Side, *, kept: bool = False) -> Problem:
    """Ask what a notice says; ``kept``: in a wording that training never shows."""
    notice = _draw(world, dice, side, kept=kept)
    return Problem(
        kind="notices",
        question=say(dice, _ASKED, {"text": notice.text, "question": notice.question}),
        answer=notice.answer,
        sentence=notice.sentence,
        choices=_choices(dice, notice),
        held_out="template" if kept else "none",
    )


def _choices(dice: Dice, notice: _Notice) -> tuple[str, ...]:
    """Put the answer among three others, of which the first two are states that the notice tells."""
    return draw_choices(dice, notice.answer, list(dict.fromkeys(notice.others))[:3])


def notice_tale(world: World, dice: Dice, side: Side) -> str:
    """Write two to four notices with their questions and answers, or first all notices and then what was asked."""
    notices = [_draw(world, dice, side) for _ in range(dice.between(2, 4))]
    if dice.chance(_TOGETHER):
        way = dice.pick(_PAIRS)
        lines = [" ".join(notice.text for notice in notices)]
        lines += [way.fill(_fields(notice)) for notice in dice.shuffled(notices)[:3]]
    else:
        lines = [say(dice, _PAGES, _fields(notice)) for notice in notices]
    return "\n".join(lines)


def _fields(notice: _Notice) -> dict[str, str]:
    return {
        "text": notice.text,
        "question": notice.question,
        "answer": notice.answer,
        "Answer": capital(notice.answer),
        "sentence": notice.sentence,
    }
