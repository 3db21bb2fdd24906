"""Items that stand in the training text are found, in text and in shards, and told."""

from __future__ import annotations

import random

from stockpot.data.shards import write_shards
from stockpot.judge.contamination import RUN, find_overlap, training_texts
from stockpot.judge.harness import Report, evaluate
from stockpot.judge.taskfiles import Judging
from stockpot.judge.tasks import Item, Scorer, Task

WORDS = [f"w{i}" for i in range(500)]


def sentence(seed, count=20):
    return " ".join(random.Random(seed).choices(WORDS, k=count))


def test_what_stands_in_a_text_is_found_whatever_its_case_and_marks():
    items = [Item(str(i), sentence(i), "yes") for i in range(3)] + [Item("short", "Why?", "so")]
    text = f"Before. {sentence(0).upper().replace(' ', ', ')}! YES. {' '.join(sentence(1).split()[:14])} and so on."
    overlap = find_overlap(items, [text, "nothing"])
    assert overlap.shares["0"] == 1
    assert 0 < overlap.shares["1"] < 0.5, "two of its nine runs"
    assert overlap.shares["2"] == 0
    assert overlap.seen == ["0"]
    assert overlap.short == ("short",)
    assert "1 of 3 items stand in the training text (2 in part)" in str(overlap)


def test_a_short_item_is_looked_for_as_a_whole():
    item = Item("1", sentence(5, 7), "end")
    assert len(item.question.split()) < RUN
    assert find_overlap([item], [f"x {item.question} end y"]).shares == {"1": 1.0}
    assert find_overlap([item], [f"x {item.question} y"]).shares == {"1": 0.0}


def test_shards_are_read_back_with_their_tokenizer(make_bundle, tmp_path):
    tokenizer = make_bundle().tokenizer
    texts = ["What is it? yes no maybe blue red green", "1 2 3"]
    write_shards(texts, tokenizer, tmp_path / "shards")
    assert list(training_texts([str(tmp_path / "shards")], tokenizer)) == texts


def test_the_report_says_how_clean_items_score(make_bundle, tmp_path):
    items = tuple(
        Item(f"i{n}", f"{sentence(n, 8)}", "yes", ("yes", "no"), prompt=f"What is {n}?\nAnswer:")
        for n in range(4)
    )
    (tmp_path / "corpus.txt").write_text(f"{items[2].question} yes and more", encoding="utf-8")
    task = Task("some", "1", items, Scorer(kind="choices"))
    report = evaluate(make_bundle(), [task], Judging(against=(str(tmp_path / "corpus.txt"),)))
    assert report.seen == {"some": ["i2"]}
    assert [(row.task, row.estimate.n) for row in report.kinds] == [("some (seen)", 1), ("some (clean)", 3)]
    assert "1 of 4 items stand in the training text" in str(report)
    assert Report.load(report.save(tmp_path)) == report
