"""Comparisons made in Label Studio and Open WebUI are read from their exports as they are."""

from __future__ import annotations

import json

import pytest

from stockpot.data.exports import unfold
from stockpot.data.sources import read_records
from stockpot.errors import DataError


def annotation(selected, **more):
    result = [{"type": "pairwise", "from_name": "pw", "value": {"selected": selected}}]
    return {"completed_by": 7, "created_at": "2026-01-02T03:04:05Z", "result": result, **more}


def task(*annotations, **data):
    found = {"prompt": "Who is it?", "answer1": "Mara.", "answer2": "Nobody."}
    return {"id": 1, "data": data or found, "annotations": list(annotations), "predictions": []}


def read(tmp_path, entries):
    file = tmp_path / "export.json"
    file.write_text(json.dumps(entries), encoding="utf-8")
    return list(read_records(str(file)))


def test_each_annotation_of_a_label_studio_task_is_a_comparison(tmp_path):
    cancelled = annotation("left", was_cancelled=True)
    first, second = read(tmp_path, [task(annotation("left"), annotation("right"), cancelled), task()])
    assert (first.chosen, first.rejected) == ("Mara.", "Nobody.")
    assert (second.chosen, second.rejected) == ("Nobody.", "Mara.")
    assert (first.annotator, first.created, first.source) == ("7", "2026-01-02T03:04:05Z", "label-studio")


def test_an_annotation_that_selects_nothing_compares_nothing(tmp_path):
    assert len(read(tmp_path, [task(annotation(None), annotation("left"))])) == 1


def test_a_task_whose_fields_are_unknown_says_which_are_expected(tmp_path):
    with pytest.raises(DataError, match="answer1 and answer2"):
        read(tmp_path, [task(annotation("left"), text="Who?", a="x", b="y")])


def feedback(rating, *, rated="c", siblings=("d",), **more):
    messages = {
        "a": {"id": "a", "parentId": None, "role": "user", "content": "Hello"},
        "b": {"id": "b", "parentId": "a", "role": "assistant", "content": "Hello!"},
        "q": {"id": "q", "parentId": "b", "role": "user", "content": "Who is it?"},
        "c": {"id": "c", "parentId": "q", "role": "assistant", "content": "Mara."},
    }
    for name in siblings:
        messages[name] = {"id": name, "parentId": "q", "role": "assistant", "content": f"It is {name}."}
    chat = {"id": "x", "chat": {"history": {"messages": messages, "currentId": "c"}}}
    return {
        "id": "f",
        "user_id": "u1",
        "type": "rating",
        "data": {"rating": rating, "model_id": "m"},
        "meta": {"message_id": rated, "chat_id": "x"},
        "snapshot": {"chat": chat},
        "created_at": 1_767_323_045,
        **more,
    }


def test_a_thumb_compares_an_answer_with_those_beside_it(tmp_path):
    up, down = read(tmp_path, [feedback(1), feedback(-1)])
    assert (up.chosen, up.rejected) == ("Mara.", "It is d.")
    assert (down.chosen, down.rejected) == ("It is d.", "Mara.")
    assert [message.content for message in up.prompt] == ["Hello", "Hello!", "Who is it?"]
    assert (up.annotator, up.source, up.created) == ("u1", "open-webui", "2026-01-02T03:04:05+00:00")
    assert len(read(tmp_path, [feedback(1, siblings=("d", "e"))])) == 2


def test_a_thumb_without_a_second_answer_compares_nothing(tmp_path):
    alone = feedback(1, siblings=())
    assert len(read(tmp_path, [alone, feedback("1")])) == 1
    with pytest.raises(DataError, match="no record"):
        read(tmp_path, [alone])


def test_a_chat_that_runs_in_a_circle_ends():
    circle = feedback(1)
    circle["snapshot"]["chat"]["chat"]["history"]["messages"]["a"]["parentId"] = "q"
    ((_, record),) = unfold("f:1", circle)
    assert len(record["prompt"]) == 3


@pytest.mark.parametrize("broken", [{"snapshot": {"chat": 3}}, {"data": []}, {"meta": [1]}])
def test_a_broken_feedback_is_refused(tmp_path, broken):
    with pytest.raises(DataError, match="Open WebUI needs"):
        read(tmp_path, [feedback(1) | broken])


def test_other_records_pass_through():
    assert list(unfold("f:1", {"text": "x"})) == [("f:1", {"text": "x"})]
    assert list(unfold("f:2", 3)) == [("f:2", 3)]
