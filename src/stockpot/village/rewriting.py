"""Saying it another way: a sentence in the present, the past, the future, or denied.

Every sentence has a subject, a verb with its forms, and an object; each form is built from the same parts,
so the right rewriting is exact. Denying a sentence is shown in school lessons but never asked for in
training chats.
"""

from __future__ import annotations

from dataclasses import dataclass

from stockpot.village.cast import cast_one
from stockpot.village.dice import Dice, Side, draw_on
from stockpot.village.problem import Problem
from stockpot.village.wording import say, wordings

__all__ = ["Forms", "lesson", "negation_problem", "rewriting_problem"]

# infinitive, present, past: objects
_VERBS: tuple[tuple[str, str, str, tuple[str, ...]], ...] = (
    ("walk", "walks", "walked", ("to the mill", "along the river", "to the market", "home")),
    ("bake", "bakes", "baked", ("an apple cake", "fresh bread", "a cherry pie", "ten buns")),
    ("carry", "carries", "carried", ("the water", "a heavy basket", "the bags", "the ladder")),
    ("paint", "paints", "painted", ("the door", "a picture", "the fence", "the old chair")),
    ("clean", "cleans", "cleaned", ("the kitchen", "the stable", "the windows", "the lamp")),
    ("open", "opens", "opened", ("the gate", "the shop", "a letter", "the box")),
    ("close", "closes", "closed", ("the gate", "the shop", "the book", "the window")),
    ("play", "plays", "played", ("the flute", "chess", "the violin", "with the dog")),
    ("help", "helps", "helped", ("a neighbour", "the old man", "the children", "the baker")),
    ("visit", "visits", "visited", ("a friend", "the school", "the church", "the farm")),
    ("wash", "washes", "washed", ("the plates", "the horse", "the red coat", "the cups")),
    ("plant", "plants", "planted", ("roses", "an apple tree", "carrots", "onions")),
    ("count", "counts", "counted", ("the hens", "the coins", "the eggs", "the stars")),
    ("buy", "buys", "bought", ("a new hat", "three pears", "fresh cheese", "a goose")),
    ("sell", "sells", "sold", ("honey", "the old horse", "six eggs", "the house")),
    ("write", "writes", "wrote", ("a letter", "a poem", "a long list", "a story")),
    ("read", "reads", "read", ("an old book", "the letter", "a story", "the map")),
    ("find", "finds", "found", ("the key", "a silver ring", "the lost goat", "a shell")),
    ("bring", "brings", "brought", ("the bread", "good news", "flowers", "a lamp")),
    ("make", "makes", "made", ("cheese", "a puppet", "a kite", "soup")),
    ("see", "sees", "saw", ("a white duck", "the moon", "a big ship", "the river")),
    ("eat", "eats", "ate", ("soup", "an apple", "fish", "bread and butter")),
    ("drink", "drinks", "drank", ("milk", "tea", "a cup of water", "apple juice")),
    ("ride", "rides", "rode", ("a brown horse", "to the next town", "through the forest", "the pony")),
    ("sing", "sings", "sang", ("a song", "in the church", "for the children", "in the choir")),
    ("swim", "swims", "swam", ("in the lake", "across the river", "with a friend", "in cold water")),
    ("go", "goes", "went", ("to the bakery", "to school", "to the post office", "up the hill")),
    (
        "give",
        "gives",
        "gave",
        ("bread to the birds", "a coin to the boy", "a book to the school", "hay to the horse"),
    ),
)

_TASKS = {
    "past": wordings(
        "Rewrite this sentence in the past: {text}",
        "Put this sentence into the past tense: {text}",
        "{text} Say the same in the past.",
    ),
    "future": wordings(
        "Rewrite this sentence in the future: {text}",
        "Put this sentence into the future tense: {text}",
        "{text} Say the same in the future.",
    ),
    "present": wordings(
        "Rewrite this sentence in the present: {text}",
        "Put this sentence into the present tense: {text}",
        "{text} Say the same in the present.",
    ),
}
_KEPT_TASKS = {
    "past": wordings(
        "How do you say this if it happened yesterday? {text}", "Change the tense to the past: {text}"
    ),
    "future": wordings(
        "How do you say this if it happens tomorrow? {text}", "Change the tense to the future: {text}"
    ),
    "present": wordings(
        "How do you say this if it happens now? {text}", "Change the tense to the present: {text}"
    ),
}
_NEGATIONS = wordings('Rewrite this sentence with "not": {text}', "Say that this is not so: {text}")
_MODES = ("past", "future", "present")
_LESSONS = wordings(
    'Present: {present}\nPast: {past}\nFuture: {future}\nWith "not": {negative}',
    "Today we say: {present} If it was yesterday, we say: {past} For tomorrow we say: {future}",
    "{present} That is the present. {past} That is the past. {future} That is the future.",
    "If it is not true that {clause}, we say: {negative}",
    'The past of "{present}" is "{past}"',
    'The future of "{present}" is "{future}"',
    'With "not" we say: {negative} Without it we say: {present}',
)


@dataclass(frozen=True, slots=True)
class Forms:
    """One sentence in all its forms."""

    present: str
    past: str
    future: str
    negative: str


def draw_forms(dice: Dice, side: Side) -> Forms:
    """Draw a sentence whose present form belongs to one side of the split."""

    def draw() -> Forms:
        who, (verb, present, past, objects) = cast_one(dice)["a"], dice.pick(_VERBS)
        what = dice.pick(objects)
        return Forms(
            f"{who} {present} {what}.",
            f"{who} {past} {what}.",
            f"{who} will {verb} {what}.",
            f"{who} does not {verb} {what}.",
        )

    return draw_on(side, draw, lambda forms: forms.present)


def rewriting_problem(dice: Dice, side: Side, *, kept: bool = False) -> Problem:
    """Ask for the past, the future or the present of a sentence; ``kept``: in a wording that training never shows."""
    forms, mode = draw_forms(dice, side), dice.pick(_MODES)
    given = dice.pick((forms.past, forms.future)) if mode == "present" else forms.present
    answer = str(getattr(forms, mode))
    return Problem(
        kind="rewriting",
        question=say(dice, (_KEPT_TASKS if kept else _TASKS)[mode], {"text": given}),
        answer=answer,
        sentence=answer,
        choices=_choices(dice, forms),
        held_out="template" if kept else "none",
    )


def negation_problem(dice: Dice, side: Side) -> Problem:
    """Ask for the denial of a sentence: a task that training never shows."""
    forms = draw_forms(dice, side)
    return Problem(
        kind="negation",
        question=say(dice, _NEGATIONS, {"text": forms.present}),
        answer=forms.negative,
        sentence=forms.negative,
        choices=_choices(dice, forms),
        held_out="task",
    )


def _choices(dice: Dice, forms: Forms) -> tuple[str, ...]:
    return tuple(dice.shuffled((forms.present, forms.past, forms.future, forms.negative)))


def lesson(dice: Dice, side: Side) -> str:
    """Write a page from a school lesson on tenses and on \"not\"."""
    lines = []
    for _ in range(dice.between(2, 4)):
        forms = draw_forms(dice, side)
        fields = {
            "present": forms.present,
            "past": forms.past,
            "future": forms.future,
            "negative": forms.negative,
            "clause": forms.present.rstrip("."),
        }
        lines.append(say(dice, _LESSONS, fields))
    return "\n".join(lines)
