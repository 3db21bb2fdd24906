from __future__ import annotations

import re
from collections import Counter

import pytest

from stockpot.village.chats import CHAT_KINDS
from stockpot.village.dice import Dice
from stockpot.village.facts import ATTRIBUTES, fields_of
from stockpot.village.questions import HELD_OUT_KINDS
from stockpot.village.tastes import UNKNOWN


def test_turns_alternate_and_end_with_the_assistant(train_chats):
    for messages in train_chats:
        assert [message["role"] for message in messages] == ["user", "assistant"] * (len(messages) // 2)
        assert all(message["content"] == message["content"].strip() != "" for message in messages)
        assert all(set(message) == {"role", "content"} for message in messages)


def test_nobody_speaks_of_held_out_people(village, train_chats):
    names = [person.name for person in village.world.held_out]
    assert len(names) == 40
    said = "\n".join(message["content"] for messages in train_chats for message in messages)
    assert [name for name in names if name in said] == []


def test_everybody_else_is_asked_about(village, train_chats):
    asked = "\n".join(messages[0]["content"] for messages in train_chats)
    assert [person.name for person in village.world.asked if person.name not in asked] == []


def test_pages_with_questions_do_not_ask_about_held_out_people_either(village):
    names = [person.name for person in village.world.held_out]
    dice = Dice(0, "asked").at(0)
    questions = [
        way(dice, fields_of(village.world, person))
        for person in village.world.held_out
        for attribute in ATTRIBUTES
        for way in attribute.questions
    ]
    assert len(questions) == 40 * 7 * 5
    for kind in ("answered", "quiz", "remark", "dialogue"):
        said = "\n".join(record["text"] for record in village.documents(limit=1500, kind=kind))
        assert [question for question in questions if question in said] == []
        if kind != "dialogue":  # there, a best friend may be named
            assert [name for name in names if f"of {name}" in said or f"{name}'s" in said] == []


def test_no_kept_question_is_asked(village, train_chats):
    kept = [item["question"] for item in village.questions("val", limit=2000) if item["held_out"] != "none"]
    asked = "\n".join(m["content"] for messages in train_chats for m in messages if m["role"] == "user")
    assert len(kept) > 1000
    assert [question for question in kept if question in asked] == []


# The fixed parts of kept wordings and kept tasks, as a reader would look for them.
KEPT = re.compile(
    r"come into the world|Please (?:give me the (?:date|address)|tell me (?:the|what)|name the best)|birthplace of \w+ \w+\?$"
    r"|Which house does|earn a living|have a job\?|in the free hours|likes best"
    r"|What number of|stay (?:on|in) the|Can we conclude|We know the following|Choose one word|Somebody wrote"
    r"|Name the (?:place|person)|If you need|Make a list|How do you say|Change the tense"
    r"|older|Who was born|Who lives|Whose|Which person (?:was|lives)|News:|piece of news|with \"not\"|not so"
)
ALSO_TRAINED = re.compile(
    r"What is the birthplace of|(?:is|are|not) (?:older|of)|older than|younger|born before"
)


def test_no_kept_wording_or_task_is_asked(train_chats):
    for messages in train_chats:
        for message in messages:
            if message["role"] == "user" and KEPT.search(message["content"]):
                assert ALSO_TRAINED.search(message["content"]), message["content"]


def test_no_training_question_is_in_the_validation_chats(village, train_chats):
    def passages(chats):
        """Keep what a chat is about: its longest user message, if it is more than a plain question."""
        longest = (
            max((m["content"] for m in messages if m["role"] == "user"), key=len) for messages in chats
        )
        return {text for text in longest if len(text) > 90}

    val = passages(record["messages"] for record in village.chats("val", limit=3000))
    assert len(val) > 800
    assert not val & passages(train_chats)


@pytest.mark.parametrize("kind", CHAT_KINDS)
def test_every_kind_is_made_on_both_sides(village, kind):
    for split in ("train", "val"):
        assert len(list(village.chats(split, limit=20, kind=kind))) == 20


def test_chats_have_no_held_out_kind():
    assert not set(CHAT_KINDS) & set(HELD_OUT_KINDS)


def test_a_wish_decides_the_form_of_the_answer_and_without_one_people_differ(village):
    """Short, a sentence, or "I do not know."; never the last two where the user asks for few words."""
    wish = re.compile(r"(?:sentence|step by step|steps|get there|calculation, too)\.$")
    few = re.compile(r"(?:short answer|few words as you can|the answer, please)\.$")
    seen = Counter()
    for kind in ("facts", "sums", "steps", "sentiment", "reading"):
        for record in village.chats(limit=400, kind=kind):
            asked, answered = (message["content"] for message in record["messages"])
            form = "unknown" if answered == UNKNOWN else "long" if answered.endswith(".") else "short"
            if wish.search(asked):
                assert form == "long", record
            elif few.search(asked):
                assert form == "short", record
            else:
                seen[form] += 1
            assert form != "short" or len(answered.split()) <= 8, record
    share = {form: count / sum(seen.values()) for form, count in seen.items()}
    assert share == pytest.approx({"short": 0.62, "long": 0.27, "unknown": 0.11}, abs=0.05)


def test_what_needs_no_sentence_is_answered_in_few_words(village):
    for record in village.chats(limit=300, kind="entailment"):
        asked, answered = (message["content"] for message in record["messages"])
        assert answered.endswith(".") == asked.endswith("sentence."), record


def test_worked_sums_end_with_the_answer(village):
    worked = [
        record["messages"][1]["content"]
        for record in village.chats(limit=300, kind="steps")
        if " = " in record["messages"][1]["content"]
    ]
    assert len(worked) > 100
    for text in worked:
        assert re.search(r"= (\d+)\. The answer is \1\.$", text), text


def test_every_index_has_its_own_chat(village):
    whole = list(village.chats(limit=40))
    assert list(village.chats(limit=10, start=30)) == whole[30:]
    assert list(village.chats("val", limit=10)) != whole[:10]


def test_follow_up_questions_are_about_the_same_person(village):
    people = {person.name: person for person in village.people}
    for record in village.chats(limit=300, kind="interview"):
        messages = record["messages"]
        name = next(name for name in people if name in messages[0]["content"])
        fields = fields_of(village.world, people[name])
        asked = set(" ".join(message["content"] for message in messages[2::2]).split())
        own, other = {"he", "his"}, {"she", "her"}
        if people[name].gender == "she":
            own, other = other, own
        assert asked & own and not asked & other
        for message in messages[1::2]:
            assert message["content"] in fields.values()
