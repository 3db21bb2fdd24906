"""Passages found by words, and how much of a question they hold."""

from __future__ import annotations

from stockpot.prompt.shelf import Shelf
from stockpot.village import Village


def test_every_piece_of_news_is_found_by_its_question_and_no_other_question_is_covered():
    village = Village()
    news = village.news()
    others = [one["question"] for one in village.questions(limit=130) if one["kind"] not in ("who", "facts")]
    shelf = Shelf([one["text"] for one in news], [*others, *(one["question"] for one in news)])
    for one in news:
        best = shelf.find(one["question"], 1)[0]
        assert best.text == one["text"]
        assert best.covers > 0.5
    assert max(found.covers for other in others for found in shelf.find(other, 1)) < 0.5


def test_nothing_is_found_where_no_word_is_shared():
    assert Shelf(["The mill is old."]).find("Wer wohnt dort?", 3) == []
    assert Shelf([]).find("Who?", 3) == []
