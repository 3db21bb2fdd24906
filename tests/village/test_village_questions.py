from __future__ import annotations

import re
from collections import Counter
from itertools import islice

import pytest

from stockpot.village import HELD_OUT_KINDS, KINDS, TRAINED_KINDS, Village
from stockpot.village.dice import side_of

FIELDS = {"id", "kind", "question", "choices", "answer", "held_out"}


@pytest.mark.parametrize("kind", KINDS)
def test_items_have_one_exact_answer_among_different_choices(village, kind):
    for item in village.questions("val", limit=200, kind=kind):
        assert set(item) == FIELDS
        assert item["kind"] == kind
        assert item["choices"].count(item["answer"]) == 1
        assert len(set(item["choices"])) == len(item["choices"]) in (2, 3, 4)
        assert item["question"] == item["question"].strip()


def test_chance_is_known_for_each_kind(village):
    sizes = {
        kind: {len(i["choices"]) for i in village.questions("val", limit=100, kind=kind)} for kind in KINDS
    }
    three, two = {"sentiment", "entailment", "headline"}, {"older"}
    assert sizes == {kind: {3 if kind in three else 2 if kind in two else 4} for kind in KINDS}


@pytest.mark.parametrize(
    "kind", [kind for kind in KINDS if kind not in ("sentiment", "entailment", "headline")]
)
def test_the_right_choice_stands_anywhere(village, kind):
    places = Counter(i["choices"].index(i["answer"]) for i in village.questions("val", limit=180, kind=kind))
    assert min(places.values()) > 20


def test_each_kind_says_what_is_held_out(village):
    expected = {kind: {"none", "template"} for kind in TRAINED_KINDS} | {
        kind: {"task"} for kind in HELD_OUT_KINDS
    }
    expected["facts"] = {"none", "template", "person"}
    for kind, ways in expected.items():
        held_out = Counter(item["held_out"] for item in village.questions("val", limit=120, kind=kind))
        assert set(held_out) == ways
        assert max(held_out.values()) - min(held_out.values()) <= 6


def test_training_items_hold_nothing_out(village):
    items = list(village.questions("train", limit=300))
    assert {item["held_out"] for item in items} == {"none"}
    assert {item["kind"] for item in items} == set(TRAINED_KINDS)


def test_kinds_take_turns(village):
    assert [item["kind"] for item in village.questions("val", limit=2 * len(KINDS))] == [*KINDS, *KINDS]


def test_ids_and_questions_are_unique(village):
    items = list(village.questions("val", limit=2000))
    assert len({item["id"] for item in items}) == 2000
    assert len({item["question"] for item in items}) == 2000


def test_facts_come_to_an_end(village):
    held_out = Counter(item["held_out"] for item in village.questions("val", kind="facts"))
    assert held_out == {"none": 160 * 7, "template": 160 * 7, "person": 40 * 7}


def test_held_out_people_are_asked_about_as_such(village):
    names = {person.name for person in village.world.held_out}
    for item in village.questions("val", kind="facts"):
        assert (item["held_out"] == "person") == any(name in item["question"] for name in names)


def test_two_people_are_compared_once():
    small = Village(seed=0, people=20)
    pairs = [frozenset(item["choices"]) for item in small.questions("val", kind="older")]
    assert len(pairs) > 50 and len(set(pairs)) == len(pairs)


def test_nothing_is_listed_twice(village):
    for item in village.questions("val", limit=3000, kind="listing"):
        things = re.split(r", | and ", item["answer"])
        assert len({thing.split()[-1].rstrip("s") for thing in things}) == len(things), item["question"]


def test_who_gives_boxes_away_has_a_name(village):
    for item in village.questions("val", limit=3000, kind="steps"):
        assert not re.search(r"on the table\. Each box holds [^.]*\. (She|He) ", item["question"])


def test_who_and_older_know_their_people(village):
    people = {person.name: person for person in village.people}
    for item in village.questions("val", limit=200, kind="who"):
        person = people[item["answer"]]
        assert person.born in item["question"] or person.home in item["question"]
    for item in village.questions("val", limit=500, kind="older"):
        born = [people[name].year for name in item["choices"]]
        assert people[item["answer"]].year == min(born) < max(born)


def _passage(item: dict) -> str:
    """Cut out what a question is about: the quoted review, the sentence to rewrite, or all of it."""
    question = item["question"]
    if item["kind"] in ("sentiment", "headline"):
        return question[question.index('"') :].rsplit('"', 1)[0] + '"' if '"' in question else question
    if item["kind"] in ("rewriting", "negation"):
        return question.split(": ")[-1].split("? ")[-1].split(" Say the same")[0]
    return question


@pytest.mark.parametrize(
    "kind",
    ["sums", "steps", "chains", "reading", "sentiment", "headline", "listing", "rewriting", "negation"],
)
def test_what_a_question_is_about_is_in_no_training_record(village, train_texts, train_chats, kind):
    seen = "\n".join(train_texts) + "\n".join(m["content"] for chat in train_chats for m in chat)
    assert [item for item in village.questions("val", limit=40, kind=kind) if _passage(item) in seen] == []


def test_the_same_text_is_asked_about_on_one_side_only(village):
    for kind in ("sums", "chains"):
        assert all(
            side_of(item["question"]) == "val" for item in village.questions("val", limit=100, kind=kind)
        )
    assert all(side_of(i["question"]) == "train" for i in village.questions("train", limit=100, kind="sums"))


def test_endless_kinds_do_not_end(village):
    assert len(list(islice(village.questions("val", kind="sums"), 3000))) == 3000
