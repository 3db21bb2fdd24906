from __future__ import annotations

import gzip
import json
import re

import pytest

from stockpot.errors import ConfigError, DataError
from stockpot.judge.tasks import Item, load_task, village_tasks, word_item
from stockpot.text.chat import Message

ITEMS = [
    {"question": "What is 2 + 2?", "answer": "4"},
    {"question": "Is it?", "answer": "yes", "choices": ["yes", "no"], "id": "two"},
]


def written(path, records):
    path.write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    return path


def test_a_file_of_questions_is_a_task(tmp_path):
    task = load_task(written(tmp_path / "mine.jsonl", ITEMS))
    assert task.name == "mine"
    assert [item.answer for item in task.items] == ["4", "yes"]
    assert (task.items[0].choices, task.items[1].choices) == ((), ("yes", "no"))
    assert task.items[1].id == "two"
    assert (task.items[0].chance, task.items[1].chance) == (0.0, 0.5)
    assert len(load_task(tmp_path / "mine.jsonl", limit=1).items) == 1


def test_choices_may_have_labels(tmp_path):
    labelled = {"question": "Is it?", "choices": {"A": "yes", "B": "no"}, "answer": "B"}
    (item,) = load_task(written(tmp_path / "mine.jsonl", [labelled])).items
    assert (item.choices, item.answer) == (("yes", "no"), "no")
    with pytest.raises(DataError, match='"answer"'):
        load_task(written(tmp_path / "mine.jsonl", [labelled | {"answer": "C"}]))


def test_a_packed_file_is_read_as_it_is(tmp_path):
    plain = load_task(written(tmp_path / "mine.jsonl", ITEMS))
    with gzip.open(tmp_path / "mine.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write((tmp_path / "mine.jsonl").read_text(encoding="utf-8"))
    packed = load_task(tmp_path / "mine.jsonl.gz")
    assert packed.name == "mine"
    assert [vars(item) | {"id": ""} for item in packed.items] == [
        vars(item) | {"id": ""} for item in plain.items
    ]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("not json", r"t\.jsonl:2: "),
        ("[1]", r"t\.jsonl:2: "),
        ('{"question": "a"}', r't\.jsonl:2: .*"answer"'),
        ('{"question": "a", "answer": "b", "choices": "ab"}', "list of texts"),
        ('{"question": "a", "answer": "b", "choices": ["c", "d"]}', "not among the choices"),
        ('{"question": "a", "answer": "b", "choices": ["b"]}', "at least two"),
        ('{"question": "a", "answer": "b", "choices": []}', "empty"),
        ('{"question": "a", "answer": "b", "choices": {}}', "empty|needs"),
        ('{"question": "a", "answer": "b", "choices": ["b", "b"]}', "twice"),
    ],
)
def test_a_wrong_line_is_told_with_its_place_and_the_rest_goes_on(tmp_path, line, said):
    (tmp_path / "t.jsonl").write_text(json.dumps(ITEMS[0]) + "\n" + line, encoding="utf-8")
    task = load_task(tmp_path / "t.jsonl")
    assert len(task.items) == 1
    (left,) = task.bad
    assert re.search(said, left.why)
    (tmp_path / "t.jsonl").write_text("\n" + line, encoding="utf-8")
    with pytest.raises(DataError, match=said):
        load_task(tmp_path / "t.jsonl")


@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe\x00", b"\n\n"])
def test_a_file_without_questions_is_refused(tmp_path, content):
    path = tmp_path / "t.jsonl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=r"t\.jsonl"):
        load_task(path)


def test_equal_fingerprints_mean_equal_questions(tmp_path):
    one, same = (load_task(written(tmp_path / "a.jsonl", ITEMS)) for _ in range(2))
    other = load_task(written(tmp_path / "a.jsonl", [ITEMS[0], ITEMS[1] | {"answer": "no"}]))
    assert one.fingerprint == same.fingerprint != other.fingerprint


def test_the_villages_tasks_are_its_kinds_of_question():
    tasks = village_tasks(limit=3)
    assert len(tasks) > 5
    assert all(len(task.items) == 3 and task.name.startswith("village/") for task in tasks)
    with pytest.raises(ConfigError, match="not-there"):
        village_tasks(limit=1, kinds=["not-there"])


def test_an_item_is_worded_for_base_and_for_chat_models():
    item = Item("1", "Is it?", "yes")
    assert word_item(item, "plain") == "Question: Is it?\nAnswer:"
    assert word_item(item, "chat") == [Message("user", "Is it?")]


def test_no_two_items_have_one_id(tmp_path):
    """Files of several parts often count anew in each; answers of two models are paired by the id."""
    records = [{"question": f"{i}?", "answer": "1", "id": i % 2} for i in range(4)]
    task = load_task(written(tmp_path / "mine.jsonl", records))
    assert [item.id for item in task.items] == ["0", "1", "0 (2)", "1 (2)"]
    assert [item.id for item in load_task(tmp_path / "mine.jsonl", limit=2).items] == ["0", "0 (2)"]
