"""Sentiments are read again here, sentence by sentence, with a list of words made for the test."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from stockpot.village.dice import Dice
from stockpot.village.reviews import SENTIMENTS, draw_note, draw_review, sentiment_of

PRAISE = re.compile(
    r"\b(?:love|liked?|happy|wonderful|buy it again|worth every|delicious|excellent|very good|great|fresh|better|asked for more"
    r"|strong|beautiful|good quality|lovely|does its job|want such|easier|friendly|kind|helpful|clean|best|helped me at once"
    r"|smile|tasted good|good work)\b"
)
BLAME = re.compile(
    r"\b(?:not like|angry|terrible|never buy|not worth|awful|salty|cold|tasted bad|of nothing|a fly|worse|sick|broke|ugly|cheap"
    r"|no use|bad quality|threw|rude|unfriendly|lazy|dirty|worst|hate|two hours|anger|too small|too loud|slow)\b"
)


def read_sentiment(text: str) -> str:
    clauses = [clause for clause in re.split(r"(?<=[.!?]) |, but ", text) if clause]
    praise = sum(bool(PRAISE.search(clause)) and not BLAME.search(clause) for clause in clauses)
    blame = sum(bool(BLAME.search(clause)) for clause in clauses)
    return "neutral" if praise == blame else "positive" if praise > blame else "negative"


def test_sentiments_are_those_of_an_independent_reader(village):
    for i in range(3000):
        review = draw_review(village.world, Dice(0, "reviews").at(i), "train")
        assert read_sentiment(review.text) == review.sentiment, review


def test_a_review_says_what_it_is_about(village):
    for i in range(500):
        review = draw_review(village.world, Dice(1, "about").at(i), "train")
        assert review.subject.removeprefix("the ") in review.text


@pytest.mark.parametrize("kind", ["sentiment", "headline"])
def test_sentiments_are_equally_frequent(village, kind):
    counts = Counter(item["answer"] for item in village.questions("val", limit=900, kind=kind))
    assert set(counts) == set(SENTIMENTS)
    assert all(abs(n - 300) < 80 for n in counts.values())


def test_notes_name_the_place_of_work(village):
    for i in range(300):
        note = draw_note(village.world, Dice(0, "notes").at(i), "train")
        assert note.subject.removeprefix("the ") in note.text
        assert note.sentiment in SENTIMENTS


def test_a_balance_is_neutral():
    assert [sentiment_of(*counts) for counts in ((0, 0), (1, 1), (3, 0), (0, 2))] == [
        "neutral",
        "neutral",
        "positive",
        "negative",
    ]
