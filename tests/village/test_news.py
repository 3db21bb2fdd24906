from __future__ import annotations

from stockpot.village.news import NEWS_YEAR


def test_answers_stand_in_the_passage_and_among_the_choices(village):
    for item in village.news():
        assert item["answer"] in item["text"]
        assert item["choices"].count(item["answer"]) == 1
        assert len(set(item["choices"])) == 4
        assert str(NEWS_YEAR) in item["question"]


def test_the_old_state_stands_in_the_passage_too(village):
    """A reader has to tell old from new, and the old one is a choice."""
    assert all(
        sum(choice in item["text"].replace(item["date"], "") for choice in item["choices"]) >= 2
        for item in village.news()
    )


def test_no_other_text_knows_the_year_of_the_news(village, train_texts, train_chats):
    year = str(NEWS_YEAR)
    assert not any(year in text for text in train_texts)
    assert not any(year in message["content"] for chat in train_chats for message in chat)
    assert not any(year in record["text"] for record in village.documents("val", limit=1000))
    assert not any(year in item["question"] for item in village.questions("val", limit=1000))


def test_news_are_numbered_and_always_the_same(village):
    assert [item["id"] for item in village.news()] == [f"news-{i}" for i in range(40)]
    assert village.news() == village.news()
