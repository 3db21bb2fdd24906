"""Examples: balanced, similar, rightly and wrongly labelled; and what happens where they do not fit."""

from __future__ import annotations

import json
from collections import Counter

import pytest
import torch

from stockpot.errors import ConfigError, GenerationError
from stockpot.generate.engine import Engine
from stockpot.judge.prompts import ask_wording
from stockpot.prompt import shots as module
from stockpot.prompt.items import Item, Pool, Questions
from stockpot.prompt.shots import Paper, Shots, choose, shown_answers
from stockpot.prompt.wordings import find_asking

LABELS = ("positive", "negative", "neutral")


@pytest.fixture(scope="module")
def pool():
    examples = tuple(Item(str(i), {"text": f"text {i}"}, LABELS[i % 3]) for i in range(30))
    questions = tuple(Item(f"q{i}", {"text": f"question {i}"}, LABELS[i]) for i in range(3))
    return Pool(questions, examples, LABELS, "a list")


def test_balanced_examples_have_all_labels_alike_and_follow_the_seed(pool):
    first, other = (choose(pool, Shots(k=6, seed=seed), pool.questions)[0] for seed in (0, 1))
    assert Counter(one.item.answer for one in first) == dict.fromkeys(LABELS, 2)
    assert [one.item.id for one in first] != [one.item.id for one in other]
    assert choose(pool, Shots(k=6), pool.questions)[0] == first


def test_labels_are_gold_random_flipped_or_none():
    gold = [LABELS[i % 3] for i in range(300)]
    assert shown_answers(gold, LABELS, "gold") == gold
    assert set(shown_answers(gold, LABELS, "none")) == {None}
    flipped = shown_answers(gold, LABELS, "flipped")
    assert not [1 for a, b in zip(gold, flipped, strict=True) if a == b]
    drawn = shown_answers(gold, LABELS, "random")
    assert 60 < sum(a == b for a, b in zip(gold, drawn, strict=True)) < 140  # a third of 300, by chance


def test_similar_examples_stand_nearest_last(pool):
    def embed(texts):
        numbers = [float(text.split()[1]) for text in texts]
        return torch.tensor(
            [[torch.cos(torch.tensor(n / 20)), torch.sin(torch.tensor(n / 20))] for n in numbers]
        )

    found = choose(pool, Shots(k=3, select="similar", order="similar-last"), pool.questions[:1], embed)[0]
    assert [one.item.id for one in found] == ["2", "1", "0"]
    with pytest.raises(ValueError, match="function that embeds"):
        choose(pool, Shots(k=3, select="similar"), pool.questions)


def test_more_examples_than_there_are_is_refused(pool):
    with pytest.raises(ConfigError, match="leaves only 30"):
        choose(pool, Shots(k=31), pool.questions)


def test_examples_stand_before_the_question_in_the_same_wording(pool, make_bundle):
    paper = Paper(find_asking("sentiment"), "slashes", make_bundle())
    shown = choose(pool, Shots(k=1), pool.questions[:1])
    (prompt,) = paper.prompts(pool.questions[:1], shown)
    example = shown[0][0]
    assert prompt == f"{example.item.key} // {example.answer.capitalize()}\n\nquestion 0 //"
    assert paper.answer("neutral") == " Neutral"


def test_the_lectures_finance_sentences_stand_labelled_before_the_open_one(tmp_path, make_bundle):
    shown = {
        "Revenue from subscriptions rose by 5 % in Finland.": "positive",
        "The buyer kept the price to itself.": "neutral",
        "Paying the debt back will hurt for years.": "negative",
    }
    asked = {"The company expects its profit to improve.": "positive"}
    files = []
    for name, texts in (("shown", shown), ("asked", asked)):
        lines = [json.dumps({"text": text, "label": label}) for text, label in texts.items()]
        files.append(tmp_path / f"{name}.jsonl")
        files[-1].write_text("\n".join(lines), encoding="utf-8")
    questions = Questions(task="sentiment", data=str(files[1]), examples=str(files[0]), wordings=("slashes",))
    asking, pool = questions.open()
    bundle = make_bundle(context=256)
    rows = choose(pool, Shots(k=3), pool.questions)
    (prompt,) = Paper(asking, "slashes", bundle).prompts(pool.questions, rows)
    *before, last = prompt.split("\n\n")
    assert sorted(before) == sorted(f"{text} // {label.capitalize()}" for text, label in shown.items())
    assert last == "The company expects its profit to improve. //"
    score = ask_wording(Engine(bundle), asking, "slashes", pool, rows)
    (plain,) = Engine(bundle).score([(prompt, " Positive")])
    assert score.log_prob.value == pytest.approx(plain.log_prob, rel=1e-4)


def test_what_does_not_fit_is_left_out_from_the_front_and_counted(pool, make_bundle):
    paper = Paper(find_asking("sentiment"), "slashes", make_bundle(context=48))
    shown = choose(pool, Shots(k=6), pool.questions[:1])
    (prompt,) = paper.prompts(pool.questions[:1], shown)
    assert prompt.endswith("\n\nquestion 0 //")
    assert paper.left_out == 6 - prompt.count("\n\n") > 0
    assert shown[0][-1].item.key in prompt


def test_a_question_that_does_not_fit_is_refused_and_never_cut(pool, make_bundle):
    paper = Paper(find_asking("sentiment"), "slashes", make_bundle(context=48))
    with pytest.raises(GenerationError, match="long: question and answer take"):
        paper.prompts([Item("long", {"text": "word " * 60}, "neutral")], [[]])


def test_the_docstring_holds():
    import doctest

    assert not doctest.testmod(module).failed
