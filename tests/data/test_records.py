from __future__ import annotations

import pytest

from stockpot.data.records import (
    ChatRecord,
    CompletionRecord,
    ImageRecord,
    PreferenceRecord,
    TextRecord,
    asked_of,
    parse_asked,
    parse_record,
    text_of,
)
from stockpot.errors import DataError
from stockpot.text import Message

HELLO = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]
HELLO_MESSAGES = (Message("user", "Hello"), Message("assistant", "Hi"))


def parse(value):
    return parse_record(value, "a.jsonl:14")


def complaint(value) -> str:
    with pytest.raises(DataError) as caught:
        parse(value)
    assert caught.value.what.startswith("a.jsonl:14: ")
    return str(caught.value)


def test_the_keys_tell_the_kind():
    at = "a.jsonl:14"
    assert parse({"text": "x"}) == TextRecord("x", at)
    assert parse({"messages": HELLO}) == ChatRecord(HELLO_MESSAGES, at)
    assert parse({"prompt": "p", "completion": "c"}) == CompletionRecord("p", "c", at)
    assert parse({"prompt": "p", "chosen": "c", "rejected": "r"}) == PreferenceRecord("p", "c", "r", where=at)
    assert parse({"image": "cat.png", "text": "a cat"}) == ImageRecord("cat.png", "a cat", at)


def test_a_preference_carries_who_when_and_by_how_much():
    record = parse(
        {
            "prompt": "p",
            "chosen": "c",
            "rejected": "r",
            "margin": 2,
            "annotator": "anna",
            "created": "2026-01-01",
        }
    )
    assert (record.margin, record.annotator, record.created) == (2.0, "anna", "2026-01-01")


def test_titles_labels_and_nulls_are_left_out():
    assert parse({"text": "x", "title": "t", "label": 3, "messages": None}).text == "x"


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"prompt": "p", "chosen": "c"}, '"rejected" is missing (found: chosen, prompt).'),
        ({"prompt": "p"}, '"completion" is missing (found: prompt). Expected: {"prompt", "completion"}.'),
        ({"promt": "p", "completion": "c"}, 'unknown key. "promt" may mean "prompt".'),
        ({"body": "x", "id": 1}, "unknown keys: body, id. A record is one of"),
        ({}, "the record is empty."),
        ({"text": "x", "messages": HELLO}, 'fit more than one kind: {"text"} and {"messages"}. Keep one'),
        ({"text": 5}, '"text" must be text, not a number.'),
        ({"text": None}, '"text" is null.'),
        ({"text": True}, '"text" must be text, not true or false.'),
        ({"text": ["x"]}, '"text" must be text, not a list.'),
        ({"text": "a\ud800"}, '"text" has half a surrogate pair at character 1'),
        ({"messages": "x"}, '"messages" must be a list of messages, not text.'),
        ({"messages": []}, '"messages" is empty.'),
        ({"messages": [{"role": "user"}]}, 'messages[0] must have "role" and "content" (found: role).'),
        ({"messages": ["x"]}, 'messages[0] must have "role" and "content" (text).'),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0] has the role 'robot'. Roles are"),
        ({"messages": [{"role": [], "content": "x"}]}, "messages[0] has the role a list."),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
        ({"prompt": 1, "completion": "c"}, '"prompt" must be text, not a number.'),
        ({"prompt": "p", "completion": HELLO}, '"completion" must be text or one message of the assistant.'),
        (
            {"prompt": "p", "chosen": "c", "rejected": "r", "margin": "big"},
            '"margin" must be a finite number',
        ),
        (
            {"prompt": "p", "chosen": "c", "rejected": "r", "margin": 10**400},
            '"margin" must be a finite',
        ),
        (
            {"prompt": "p", "chosen": "c", "rejected": "r", "margin": float("nan")},
            '"margin" must be a finite',
        ),
        (
            {"prompt": "p", "chosen": "c", "rejected": "r", "margn": 1},
            'unknown key "margn". It may mean "margin".',
        ),
        ({"prompt": "p", "chosen": "c", "rejected": "r", "completion": "d"}, "fit more than one kind"),
        ({"chosen": [HELLO[0]], "rejected": [HELLO[0]]}, "must end with a message of the assistant."),
        ({"conversations": 5}, '"conversations" must be a list of turns, not a number.'),
        ({"instruction": 5, "output": "x"}, '"instruction" must be text, not a number.'),
    ],
)
def test_a_wrong_record_is_told_in_one_line(value, said):
    assert said in complaint(value)


@pytest.mark.parametrize("value", [5, "text", None, [1], True])
def test_only_objects_are_records(value):
    assert "a record is an object with named fields" in complaint(value)


@pytest.mark.parametrize("extra", [{}, {"id": 7, "completion": None}, {"source": "mine", "tags": ["a"]}])
def test_a_prompt_that_nobody_has_answered_is_asked_all_the_same(extra):
    asked = asked_of(parse_asked({"prompt": "Who are you?"} | extra, "a.jsonl:1"))
    assert asked == ((Message("user", "Who are you?"),), None)
    assert asked_of(parse_asked({"prompt": HELLO[:1]} | extra, "a.jsonl:1")) == (HELLO_MESSAGES[:1], None)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"prompt": "p", "chosen": "c"}, '"rejected" is missing'),
        ({"prompt": "p", "complation": "c"}, '"complation" may mean "completion"'),
        ({"prompt": 5}, '"prompt" must be text, not a number.'),
        ({"promt": "p"}, '"promt" may mean "prompt"'),
    ],
)
def test_a_wrong_prompt_is_refused_where_no_answer_is_needed_either(value, said):
    with pytest.raises(DataError) as caught:
        parse_asked(value, "a.jsonl:1")
    assert said in str(caught.value)


def test_a_record_with_an_answer_is_asked_as_it_was():
    for value in ({"prompt": "p", "completion": "c"}, {"text": "x"}, {"prompt": "p", "response": "r"}):
        assert parse_asked(value, "a.jsonl:14") == parse(value)


def test_a_long_list_of_keys_is_not_printed_whole():
    assert len(complaint({f"column {i} {'x' * 100}": 1 for i in range(1000)})) < 600


# --- other projects' names ---


def test_instructions_become_messages():
    value = {"instruction": "Add.", "input": "1 2", "output": "3", "text": "rendered before"}
    assert parse(value).messages == (Message("user", "Add.\n\n1 2"), Message("assistant", "3"))
    assert parse({"instruction": "Sing.", "input": "", "output": "La"}).messages[0] == Message(
        "user", "Sing."
    )
    dolly = {"instruction": "Who?", "context": "Ada was here.", "response": "Ada", "category": "qa"}
    assert parse(dolly).messages == (Message("user", "Who?\n\nAda was here."), Message("assistant", "Ada"))
    with_system = {"system": "Be kind.", "instruction": "Hi", "output": "Hi"}
    assert parse(with_system).messages[0] == Message("system", "Be kind.")


@pytest.mark.parametrize(
    ("record", "name"),
    [
        ({"conversations": [{"from": "human", "value": "u"}, {"from": "gpt", "value": "a"}]}, "messages"),
        ({"messages": [{"role": "user", "content": "u"}]}, "messages"),
        ({"prompt": "u", "completion": "a"}, "prompt"),
        ({"prompt": [{"role": "user", "content": "u"}], "chosen": "a", "rejected": "b"}, "prompt"),
        ({"chosen": "\n\nHuman: u\n\nAssistant: a", "rejected": "\n\nHuman: u\n\nAssistant: b"}, "prompt"),
    ],
)
def test_what_the_system_says_stands_in_front_where_it_is_a_field(record, name):
    said = getattr(parse(record | {"system": "s"}), name)
    assert said[:2] == (Message("system", "s"), Message("user", "u"))
    assert parse(record | {"system": ""}) == parse(record | {"system": 3}) == parse(record)
    has_one = {"messages": [{"role": "system", "content": "own"}, {"role": "user", "content": "u"}]}
    assert parse(has_one | {"system": "s"}) == parse(has_one)


def test_conversations_become_messages():
    turns = [{"from": "system", "value": "s"}, {"from": "human", "value": "u"}, {"from": "gpt", "value": "a"}]
    roles = [message.role for message in parse({"conversations": turns, "id": "7"}).messages]
    assert roles == ["system", "user", "assistant"]
    assert parse({"conversations": HELLO}).messages == HELLO_MESSAGES


@pytest.mark.parametrize(
    ("answer", "text"), [(40, "40"), (40.0, "40"), (0.5, "0.5"), (-3, "-3"), ("40.0", "40.0")]
)
def test_the_answer_to_a_question_may_be_a_number(answer, text):
    assert parse_record({"question": "How many?", "answer": answer}, "a:1").completion == text


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (["Nixon", "Richard Nixon"], 'a:1: "answer" lists 2 answers; a record has one.'),
        (True, "must be text, not true or false"),
        (float("nan"), "must be text, not a number"),
    ],
)
def test_what_is_no_one_answer_is_refused(answer, said):
    with pytest.raises(DataError, match=said):
        parse_record({"question": "Who?", "answer": answer}, "a:1")


def test_questions_and_responses_become_completions():
    assert parse({"question": "1+1?", "answer": "2"}) == CompletionRecord("1+1?", "2", "a.jsonl:14")
    assert parse({"prompt": "1+1?", "response": "2"}) == CompletionRecord("1+1?", "2", "a.jsonl:14")


def test_the_prompt_of_a_preference_is_found_in_what_its_sides_share():
    bad = [HELLO[0], {"role": "assistant", "content": "Go away"}]
    record = parse({"chosen": HELLO, "rejected": bad})
    assert record.prompt == (Message("user", "Hello"),)
    assert (record.chosen, record.rejected) == ("Hi", "Go away")
    assert parse({"messages": HELLO[:1], "chosen": "Hi", "rejected": "No"}).prompt == (
        Message("user", "Hello"),
    )
    transcripts = {
        "chosen": "\n\nHuman: Hello\n\nAssistant: Hi",
        "rejected": "\n\nHuman: Hello\n\nAssistant: Go away",
    }
    assert parse(transcripts) == record
    other = {"chosen": HELLO, "rejected": [{"role": "user", "content": "Bye"}, HELLO[1]]}
    assert "answer different prompts" in complaint(other)


def test_a_prompt_may_be_a_conversation():
    record = parse({"prompt": HELLO[:1], "completion": [HELLO[1]]})
    assert record.prompt == (Message("user", "Hello"),)
    assert record.completion == "Hi"


def test_all_text_of_a_record_trains_a_tokenizer():
    assert text_of(ChatRecord(HELLO_MESSAGES)) == "Hello\nHi"
    assert text_of(PreferenceRecord("p", "c", "r")) == "p\nc\nr"
    assert text_of(CompletionRecord(HELLO_MESSAGES, "c")) == "Hello\nHi\nc"
    assert text_of(TextRecord("x")) == text_of(ImageRecord("i.png", "x")) == "x"


def test_a_preference_may_be_a_tie_and_say_where_it_comes_from():
    record = parse_record(
        {"prompt": "P", "chosen": "A", "rejected": "B", "tie": True, "source": "village"}, "f:1"
    )
    assert (record.tie, record.source, record.margin) == (True, "village", None)
    assert parse_record({"prompt": "P", "chosen": "A", "rejected": "B", "tie": "false"}, "f:1").tie is False
    assert parse_record({"prompt": "P", "chosen": "A", "rejected": "B", "source": [1]}, "f:1").source is None
    with pytest.raises(DataError, match=r'f:1: "tie" must be true or false'):
        parse_record({"prompt": "P", "chosen": "A", "rejected": "B", "tie": "perhaps"}, "f:1")


def test_rated_answers_become_the_best_against_the_worst():
    answers = [{"response": r, "overall_score": s} for r, s in (("so", 6), ("good", 9.5), ("bad", 2))]
    record = parse_record({"instruction": "Do it.", "completions": answers}, "f:1")
    assert (record.prompt, record.chosen, record.rejected, record.margin) == ("Do it.", "good", "bad", 7.5)
    equal = parse_record({"instruction": "Do it.", "completions": answers[:1] * 2}, "f:1")
    assert equal.tie
    with pytest.raises(DataError, match=r"f:1: completions\[1\] has no"):
        parse_record({"instruction": "I", "completions": [answers[0], {"response": "x"}]}, "f:1")


def test_scores_of_both_sides_give_the_margin():
    record = parse_record(
        {"prompt": "P", "chosen": "A", "rejected": "B", "score_chosen": 8, "score_rejected": 5.5}, "f:1"
    )
    assert record.margin == 2.5


@pytest.mark.parametrize(
    ("winner", "chosen", "tie"), [("model_a", "A", False), ("b", "B", False), ("tie (bothbad)", "A", True)]
)
def test_two_answers_with_a_winner_become_a_preference(winner, chosen, tie):
    record = parse_record({"prompt": "P", "response_a": "A", "response_b": "B", "winner": winner}, "f:1")
    assert (record.chosen, record.tie) == (chosen, tie)
    sides = {f"conversation_{s}": [HELLO[0], {"role": "assistant", "content": s.upper()}] for s in "ab"}
    talk = parse_record(sides | {"winner": winner}, "f:1")
    assert (talk.prompt, talk.chosen, talk.tie) == ((HELLO_MESSAGES[0],), chosen, tie)


def test_an_unknown_winner_is_told():
    with pytest.raises(DataError, match=r"f:1: the winner is 'c'"):
        parse_record({"prompt": "P", "response_a": "A", "response_b": "B", "winner": "c"}, "f:1")
