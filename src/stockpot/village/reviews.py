"""Reviews with three sentiments, and notes on business that are good, bad or neither.

A review is a few sentences, each praising, blaming or plainly stating; its sentiment is computed from them:
positive with praise only, negative with blame only, neutral with neither or with as much of both. Notes on
places of work have the same three sentiments but are never asked about in training.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from stockpot.village.cast import cast_one
from stockpot.village.dice import Dice, Side, draw_on
from stockpot.village.lexicon import DAYS, DISHES, MONTHS
from stockpot.village.people import World
from stockpot.village.problem import Problem
from stockpot.village.wording import Noun, Wording, capital, say, wordings

__all__ = [
    "SENTIMENTS",
    "Review",
    "chronicle",
    "draw_note",
    "draw_review",
    "headline_problem",
    "review_page",
    "sentiment_of",
    "sentiment_problem",
]

SENTIMENTS = ("positive", "negative", "neutral")


def sentiment_of(praise: int, blame: int) -> str:
    """Tell the sentiment of a review from its numbers of praising and blaming sentences.

    >>> sentiment_of(2, 0), sentiment_of(0, 1), sentiment_of(1, 1)
    ('positive', 'negative', 'neutral')
    """
    if praise == blame:
        return "neutral"
    return "positive" if praise > blame else "negative"


@dataclass(frozen=True, slots=True)
class Review:
    """What is reviewed, the text, and the sentiment."""

    subject: str
    text: str
    sentiment: str


@dataclass(frozen=True, slots=True)
class _Subject:
    """A class of things that are reviewed, and what can be said about them. {it} is the thing."""

    praise: tuple[Wording, ...]
    blame: tuple[Wording, ...]
    plain: tuple[Wording, ...]
    mixed: tuple[Wording, ...]


_PRAISE = wordings(
    "I [like|love] it very much.",
    "I am [very|really] happy with it.",
    "It is wonderful.",
    "I would buy it again.",
    "It was worth every coin.",
)
_BLAME = wordings(
    "I do not like it at all.",
    "I am [very|really] angry about it.",
    "It is terrible.",
    "I will never buy it again.",
    "It was not worth a single coin.",
)
_SUBJECTS: Mapping[str, _Subject] = {
    "dish": _Subject(
        (
            *_PRAISE,
            *wordings(
                "The {it} was [delicious|excellent|very good].",
                "The {it} tasted [wonderful|great].",
                "The {it} was fresh and warm.",
                "I have never eaten better {it}.",
                "Even my children asked for more of the {it}.",
            ),
        ),
        (
            *_BLAME,
            *wordings(
                "The {it} was [awful|far too salty|cold and old].",
                "The {it} tasted [bad|of nothing|terrible].",
                "There was a fly in the {it}.",
                "I have never eaten worse {it}.",
                "After the {it} I felt sick.",
            ),
        ),
        wordings(
            "I ate the {it} on {day}.",
            "The {it} came in a [blue|white|brown] bowl.",
            "The {it} costs {price} coins.",
            "The {it} was made by {cook}.",
            "We sat at the table next to the window.",
            "I had the {it} for [lunch|supper].",
        ),
        wordings(
            "The {it} tasted good, but it was [too cold|too salty|far too small].",
            "The {it} was [too cold|too salty], but it tasted good.",
            "The {it} was [delicious|excellent], but the waiter was rude.",
            "I liked the first half of the {it}, but I did not like the second.",
        ),
    ),
    "thing": _Subject(
        (
            *_PRAISE,
            *wordings(
                "The {it} is [strong|beautiful|of very good quality].",
                "The {it} looks [lovely|great].",
                "The {it} does its job well.",
                "All my friends want such {a_it} too.",
                "The {it} makes my life easier.",
            ),
        ),
        (
            *_BLAME,
            *wordings(
                "The {it} broke [on the first day|after a week].",
                "The {it} looks [ugly|cheap and bad].",
                "The {it} is of no use.",
                "The {it} is of very bad quality.",
                "I threw the {it} away.",
            ),
        ),
        wordings(
            "I bought the {it} on {day}.",
            "The {it} is [blue|white|brown].",
            "The {it} costs {price} coins.",
            "The {it} was made by {cook}.",
            "I keep the {it} in the kitchen.",
            "The {it} came in a paper box.",
        ),
        wordings(
            "The {it} looks [lovely|great], but it is of bad quality.",
            "The {it} is ugly, but it is [strong|of good quality].",
            "I like the colour of the {it}, but it broke after a week.",
            "The {it} does its job well, but it is far too loud.",
        ),
    ),
    "place": _Subject(
        wordings(
            "The people at {it} are [friendly|kind|very helpful].",
            "At {it} everything is clean and pretty.",
            "{It} is the best place in the village.",
            "I love to go to {it}.",
            "At {it} they helped me at once.",
            "I left {it} with a smile.",
        ),
        wordings(
            "The people at {it} are [rude|unfriendly|lazy].",
            "At {it} everything is dirty and old.",
            "{It} is the worst place in the village.",
            "I hate to go to {it}.",
            "At {it} I waited for two hours, and nobody helped me.",
            "I left {it} in anger.",
        ),
        wordings(
            "I went to {it} on {day}.",
            "{It} opens at {price} o'clock.",
            "I went to {it} with {cook}.",
            "There are two doors at {it}.",
            "My first visit to {it} was in {month}.",
            "{It} is closed on {day}.",
        ),
        wordings(
            "The people at {it} are [friendly|kind], but everything is dirty.",
            "At {it} everything is clean, but the people are [rude|unfriendly].",
            "I like {it}, but I had to wait for two hours.",
            "At {it} they are slow, but they do good work.",
        ),
    ),
}
_CLASSES = tuple(_SUBJECTS)
_WARES = tuple(
    Noun.of(word)
    for word in (
        "lamp",
        "chair",
        "table",
        "knife/knives",
        "pot",
        "clock",
        "kettle",
        "umbrella",
        "basket",
        "brush",
        "bucket",
        "ladder",
    )
)

_QUESTIONS = wordings(
    'Is this review positive, negative or neutral? "{text}"',
    'Review: "{text}" What is the sentiment: positive, negative or neutral?',
    'What does this review sound like, positive, negative or neutral? "{text}"',
    'Read the review. "{text}" Is it positive, negative or neutral?',
    "{text} Is this positive, negative or neutral?",
)
_KEPT_QUESTIONS = wordings(
    'Choose one word, positive, negative or neutral, for these lines: "{text}"',
    'Somebody wrote: "{text}" How does the writer feel about it: positive, negative or neutral?',
)
_SENTENCES = wordings("The review is {sentiment}.", "This is a {sentiment} review.")
_HEADLINE_QUESTIONS = wordings(
    'Is this piece of news positive, negative or neutral for {employer}? "{text}"',
    'News: "{text}" For {employer}, is that positive, negative or neutral?',
)
_PAGES = {
    "positive": wordings("A good review of {subject}: {text}", "{name} was happy about {subject}. {text}"),
    "negative": wordings("A bad review of {subject}: {text}", "{name} was not happy about {subject}. {text}"),
    "neutral": wordings("A short note on {subject}: {text}", "{name} wrote about {subject}. {text}"),
}
_RATED = wordings("{text} This review is {sentiment}.", "Review of {subject}\n{text}\nSentiment: {sentiment}")

_NOTES = {
    "positive": wordings(
        "In {month}, {employer} earned [twice|three times] as much money as in the year before.",
        "{Employer} found {number} new customers in {month}.",
        "{Employer} won a prize for its good work.",
        "The profit of {employer} rose by {number} coins.",
        "{Employer} paid back all its debts in {month}.",
        "{Employer} could give its workers {number} coins more.",
    ),
    "negative": wordings(
        "In {month}, {employer} lost [half|most] of its money.",
        "{Employer} lost {number} customers in {month}.",
        "A fire destroyed a part of {employer}.",
        "The profit of {employer} fell by {number} coins.",
        "{Employer} has new debts of {number} coins.",
        "{Employer} had to send {number} workers home in {month}.",
    ),
    "neutral": wordings(
        "{Employer} will hold its yearly meeting in {month}.",
        "{Employer} painted its door [blue|green].",
        "{Employer} has {number} windows.",
        "{Employer} did not name the price.",
        "The report of {employer} has {number} pages.",
        "{Employer} moved its clock to another wall in {month}.",
    ),
}
_ECHOES = {
    "positive": wordings("That was good news.", "Everybody was glad about it.", "The workers were happy."),
    "negative": wordings("That was bad news.", "Everybody was sad about it.", "The workers were worried."),
    "neutral": wordings(
        "Nobody had much to say about it.", "That changed nothing.", "It made no difference."
    ),
}


def draw_review(world: World, dice: Dice, side: Side) -> Review:
    """Draw a review that belongs to one side of the split; each sentiment is equally likely."""
    return draw_on(side, lambda: _draw(world, dice), lambda review: review.text)


def _draw(world: World, dice: Dice) -> Review:
    name = dice.pick(_CLASSES)
    ways, fields, tone = _SUBJECTS[name], _fields(world, dice, name), dice.pick(SENTIMENTS)
    plain = [say(dice, (way,), fields) for way in dice.sample(ways.plain, 2)]
    if tone == "neutral":
        is_mixed = dice.chance(0.4)
        told = [plain[0], say(dice, ways.mixed, fields)] if is_mixed else plain
        sentiment = sentiment_of(int(is_mixed), int(is_mixed))
    else:
        several = ways.praise if tone == "positive" else ways.blame
        loud = [say(dice, (way,), fields) for way in dice.sample(several, dice.between(1, 3))]
        told = [*plain[: dice.below(2) if len(loud) > 1 else 1], *loud]
        sentiment = sentiment_of(*((len(loud), 0) if tone == "positive" else (0, len(loud))))
    if not any(fields["it"] in sentence for sentence in told):
        told.insert(0, f"This is about {fields['subject']}.")
    return Review(fields["subject"], " ".join(told), sentiment)


def _fields(world: World, dice: Dice, name: str) -> dict[str, str]:
    fields = {
        "day": dice.pick(DAYS),
        "month": dice.pick(MONTHS),
        "price": str(dice.between(6, 11)),
        "cook": cast_one(dice)["a"],
    }
    if name == "dish":
        dish = dice.pick(DISHES)
        return {**fields, "it": dish, "subject": f"the {dish}"}
    if name == "thing":
        ware = dice.pick(_WARES)
        return {**fields, "it": ware.one, "a_it": ware.a, "subject": f"the {ware.one}"}
    place = dice.pick(world.employers).name
    return {**fields, "it": place, "It": capital(place), "subject": place}


def sentiment_problem(world: World, dice: Dice, side: Side, *, kept: bool = False) -> Problem:
    """Ask for the sentiment of a review; ``kept``: in a wording that training never shows."""
    review = draw_review(world, dice, side)
    return Problem(
        kind="sentiment",
        question=say(dice, _KEPT_QUESTIONS if kept else _QUESTIONS, {"text": review.text}),
        answer=review.sentiment,
        sentence=say(dice, _SENTENCES, {"sentiment": review.sentiment}),
        choices=SENTIMENTS,
        held_out="template" if kept else "none",
    )


def review_page(world: World, dice: Dice, side: Side) -> str:
    """Write a few reviews, each with a word on how it was meant."""
    reviews = [draw_review(world, dice, side) for _ in range(dice.between(2, 3))]
    pages = []
    for review in reviews:
        fields = {
            "subject": review.subject,
            "text": review.text,
            "sentiment": review.sentiment,
            "name": cast_one(dice)["a"],
        }
        pages.append(say(dice, _RATED if dice.chance(0.3) else _PAGES[review.sentiment], fields))
    return "\n".join(pages)


def draw_note(world: World, dice: Dice, side: Side) -> Review:
    """Draw a note on the business of a place of work, with its meaning for that place."""

    def draw() -> Review:
        sentiment, employer = dice.pick(SENTIMENTS), dice.pick(world.employers).name
        fields = {
            "employer": employer,
            "Employer": capital(employer),
            "month": dice.pick(MONTHS),
            "number": str(dice.between(12, 99)),
        }
        return Review(employer, say(dice, _NOTES[sentiment], fields), sentiment)

    return draw_on(side, draw, lambda note: note.text)


def headline_problem(world: World, dice: Dice, side: Side) -> Problem:
    """Ask whether news is good or bad for a place of work: a task that training never shows."""
    note = draw_note(world, dice, side)
    return Problem(
        kind="headline",
        question=say(dice, _HEADLINE_QUESTIONS, {"employer": note.subject, "text": note.text}),
        answer=note.sentiment,
        sentence=f"For {note.subject}, this is {note.sentiment}.",
        choices=SENTIMENTS,
        held_out="task",
    )


def chronicle(world: World, dice: Dice, side: Side) -> str:
    """Tell what happened in the places of work, and how people took it."""
    notes = [draw_note(world, dice, side) for _ in range(dice.between(2, 4))]
    return " ".join(f"{note.text} {say(dice, _ECHOES[note.sentiment], {})}" for note in notes)
