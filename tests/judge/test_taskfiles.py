"""Benchmarks as TOML files: what a record becomes, in the hub's form and in a local one, and what is refused."""

from __future__ import annotations

import json
import zipfile

import pytest

from stockpot.errors import ConfigError, DataError
from stockpot.judge.bigbench import is_bigbench, open_bigbench
from stockpot.judge.opening import open_task
from stockpot.judge.readings import READINGS
from stockpot.judge.taskfiles import Judging, find_task, shipped_tasks

MINE = """
name = "mine"
options = ["choices"]
gold = ["answer"]
prompt = "Q: {{ question }}\\nA:"

[fields]
question = ["q"]

[scorer]
kind = "choices"
"""


def written(path, records):
    path.write_text("".join(json.dumps(one) + "\n" for one in records), encoding="utf-8")
    return str(path)


def test_every_shipped_task_can_be_read_and_is_named_like_its_file():
    assert len(shipped_tasks()) >= 25
    for name in shipped_tasks():
        task = find_task(name)
        assert task.name == name
        assert task.about
        assert task.hub is not None or name in ("text", "translate_code")


HUB_AND_LOCAL = {
    "arc_easy": [
        {"question": "Q?", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "B"},
        {"question": "Q?", "choices": {"1": "a", "2": "b"}, "answer": "2"},
    ],
    "piqa": [
        {"goal": "G", "sol1": "a", "sol2": "b", "label": 1},
        {"question": "G", "choices": {"1": "a", "2": "b"}, "answer": "2"},
    ],
    "winogrande": [
        {"sentence": "Ann met Bo because _ called.", "option1": "Ann", "option2": "Bo", "answer": "2"},
        {
            "question": "Ann met Bo because _ called.",
            "choices": {"1": "Ann", "2": "Bo Answer format: option1/option2"},
            "answer": "2",
        },
    ],
    "rte": [
        {"sentence1": "P", "sentence2": "H", "label": 1},
        {"premise": "P", "hypothesis": "H", "label": "not_entailment"},
    ],
    "boolq_closed": [
        {"question": "is it", "label": 1},
        {"question": "is it?", "choices": {"true": "true"}, "answer": "true"},
    ],
    "openbookqa": [
        {"question_stem": "S", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "B"},
        {"question": "S", "choices": {"1": "a", "2": "b"}, "answer": "2"},
    ],
    "mmlu": [
        {"question": "Q", "subject": "x_y", "choices": ["a", "b", "c", "d"], "answer": 1},
        {"question": "Q", "subject": "x_y", "choices": ["a", "b", "c", "d"], "answer": "1"},
    ],
    "truthfulqa_mc1": [
        {"question": "Q", "mc1_targets": {"choices": ["no", "yes"], "labels": [0, 1]}},
        {"question": "Q", "best": "yes", "correct": ["yes", "right"], "incorrect": ["no"]},
    ],
}


@pytest.mark.parametrize("name", HUB_AND_LOCAL)
def test_the_hubs_form_and_a_local_one_become_the_same_item(name, tmp_path):
    task = open_task(name, Judging(data=written(tmp_path / "x.jsonl", HUB_AND_LOCAL[name])))
    hub, local = task.items
    assert hub.prompt == local.prompt
    assert hub.contexts == local.contexts
    assert hub.answer == local.answer
    assert sum(hub.worth) == sum(local.worth) == 1
    assert hub.chance == 1 / len(hub.choices)


def test_prompts_are_those_of_the_harness_word_for_word(tmp_path):
    record = {
        "question": " Q?",
        "subject": "high_school_physics",
        "choices": ["a", "b", "c", "d"],
        "answer": 3,
    }
    (item,) = open_task("mmlu", Judging(data=written(tmp_path / "m.jsonl", [record]))).items
    assert item.prompt == (
        "The following are multiple choice questions (with answers) about high school physics.\n\n"
        "Q?\nA. a\nB. b\nC. c\nD. d\nAnswer:"
    )
    assert (item.choices, item.answer, item.kind) == (("A", "B", "C", "D"), "D", "high_school_physics")
    scene = {
        "ctx_a": "[header] A man",
        "ctx_b": "then",
        "activity_label": "Fun",
        "endings": ["x [step] y", "z"],
        "label": "1",
    }
    (item,) = open_task("hellaswag", Judging(data=written(tmp_path / "h.jsonl", [scene]))).items
    assert item.prompt == "Fun:  A man Then".replace("  ", " ")
    assert item.choices == ("x  y".replace("  ", " "), "z")


def test_a_sentence_of_blimp_stands_behind_a_space_as_in_the_harness(tmp_path):
    record = {"good": "He sees.", "bad": "He see."}
    (item,) = open_task("blimp", Judging(data=written(tmp_path / "b.jsonl", [record]))).items
    assert (item.prompt, item.lead, item.choices, item.answer) == (
        "",
        " ",
        ("He sees.", "He see."),
        "He sees.",
    )


def test_examples_stand_before_every_question_and_are_not_asked(tmp_path):
    solved = [{"question": f"Q{i}", "answer": f"so\n#### {i}"} for i in range(3)]
    written(tmp_path / "gsm8k_train.jsonl", solved)
    asked = written(tmp_path / "gsm8k_test.jsonl", [{"question": "Last", "answer": "#### 9"}])
    for data in (str(tmp_path), asked):
        task = open_task("gsm8k", Judging(data=data, shots=2))
        assert task.items[0].prompt == (
            "Question: Q0\nAnswer: so\n#### 0\n\nQuestion: Q1\nAnswer: so\n#### 1\n\nQuestion: Last\nAnswer:"
        )
        assert "2 examples" in task.version
    with pytest.raises(ConfigError, match="There are 3 examples"):
        open_task("gsm8k", Judging(data=str(tmp_path)))
    with pytest.raises(ConfigError, match="nothing says where they come from"):
        (tmp_path / "else").mkdir()
        open_task("gsm8k", Judging(data=written(tmp_path / "else" / "gsm8k.jsonl", solved)))


def test_some_records_are_examples_and_some_numbers_are_asked(tmp_path):
    records = [
        {"task_id": i, "text": f"T{i}", "code": f"def f{i}(): pass", "test_list": [f"assert f{i}()"]}
        for i in (2, 3, 4, 5, 11, 600)
    ]
    task = open_task("mbpp", Judging(data=written(tmp_path / "mbpp.jsonl", records)))
    assert [item.id for item in task.items] == ["11"]
    assert task.items[0].prompt.count("[BEGIN]\n") == 4
    assert "def f3(): pass\n[DONE]\n\n" in task.items[0].prompt


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"answer": "1", "choices": ["a", "b"]}, "'question' is missing"),
        ({"q": "Q", "choices": ["a", "b"]}, "there is no answer"),
        ({"q": "Q", "answer": 5, "choices": ["a", "b"]}, "number 5, but there are 2"),
        ({"q": "Q", "answer": -1, "choices": ["a", "b"]}, "number -1"),
        ({"q": "Q", "answer": "c", "choices": ["a", "b"]}, "none of the choices"),
        ({"q": "Q", "answer": 0, "choices": []}, "choices are empty"),
        ({"q": "Q", "answer": 0, "choices": ["a"]}, "no choice"),
        ({"q": "Q", "answer": 0, "choices": ["a", 3]}, "must be texts"),
        ({"q": "Q", "answer": 0}, "there is no choices"),
        ({"q": "Q", "answer": "9" * 5000, "choices": ["a", "b"]}, "none of the choices"),
        ({"q": "Q", "answer": 0, "choices": {"text": ["a", "b"], "label": 3}}, "labels must be a list"),
        ([1], "not an object"),
    ],
)
def test_a_bad_record_is_told_and_the_rest_goes_on(tmp_path, record, said):
    (tmp_path / "mine.toml").write_text(MINE, encoding="utf-8")
    good = {"q": "Q", "answer": "b", "choices": ["a", "b"]}
    data = written(tmp_path / "d.jsonl", [good, record])
    task = open_task(tmp_path / "mine.toml", Judging(data=data))
    assert [item.answer for item in task.items] == ["b"]
    assert said in task.bad[0].why
    assert task.bad[0].where.endswith("d.jsonl:2")
    with pytest.raises(DataError, match="holds no item of mine"):
        open_task(tmp_path / "mine.toml", Judging(data=written(tmp_path / "e.jsonl", [record])))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('name = "mine"\n', "", "name"),
        ('[fields]\nquestion = ["q"]\n', "", "fields"),
        ('options = ["choices"]\n', "", "options, columns or choices"),
        ('options = ["choices"]\n', 'choices = ["yes"]\n', "one choice is no choice"),
        ('gold = ["answer"]\n', "", "gold is missing"),
        ("{{ question }}", "{{ qestion }}", "speaks of 'qestion'"),
        ("{{ question }}", "{{ question", "cannot be read"),
        ('kind = "choices"', 'kind = "chioces"', "kind"),
        ('name = "mine"\n', 'name = "mine"\nreading = "nothing"\n', "is not one of"),
        ('name = "mine"\n', 'name = "mine"\npromt = "x"\n', "prompt"),
        ('kind = "choices"', 'kind = "choices"\nmeasures = ["acc_nrm"]', "acc_norm"),
        ('kind = "choices"', 'kind = "choices"\nmeasures = ["acc_pmi"]', "needs pmi = true"),
        ('kind = "choices"', 'kind = "write"\nignore = ["*"]', "no regular expression"),
        (
            'kind = "choices"',
            'kind = "write"\n[scorer.extract.x]\nkind = "regex"\npattern = "("',
            "no regular expression",
        ),
    ],
)
def test_a_wrong_task_file_is_refused_before_any_data_is_read(tmp_path, old, new, said):
    assert old in MINE
    (tmp_path / "mine.toml").write_text(MINE.replace(old, new), encoding="utf-8")
    with pytest.raises(ConfigError, match=said):
        open_task(tmp_path / "mine.toml", Judging(data="/nowhere"))


def test_a_strangers_template_can_reach_nothing(tmp_path):
    for bad in ("{{ question.__class__ }}", "{% for i in range(10**9) %}x{% endfor %}"):
        (tmp_path / "mine.toml").write_text(MINE.replace("{{ question }}", bad), encoding="utf-8")
        data = written(tmp_path / "d.jsonl", [{"q": "Q", "answer": "b", "choices": ["a", "b"]}])
        with pytest.raises(ConfigError, match="The prompt of the task mine"):
            open_task(tmp_path / "mine.toml", Judging(data=data))


def test_a_task_without_data_or_file_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="no such task"):
        find_task("arc_esy")
    with pytest.raises(ConfigError, match="no data of its own"):
        open_task("text", Judging())
    with pytest.raises(DataError, match="no file is named like the task"):
        written(tmp_path / "other.jsonl", [{}])
        open_task("arc_easy", Judging(data=str(tmp_path)))


BIG = {
    "name": "tiny",
    "metrics": ["multiple_choice_grade", "exact_str_match"],
    "example_input_prefix": "\nIn: ",
    "example_output_prefix": "\nOut: ",
    "output_regex": "\\d+",
    "examples": [
        {"input": "1 + 1?", "target": "2", "target_scores": {"2": 1, "3": 0, "4": 0.5}},
        {"input": "bad", "target_scores": {"2": 1}},
    ],
}


def test_files_of_bigbench_that_cannot_be_read_are_told(tmp_path):
    path = tmp_path / "task.json"
    path.write_bytes(b'\xef\xbb\xbf{"examples": [{"input": "a", "target": "b"}]}')
    assert open_bigbench(path)[0].items[0].answer == "b", "a byte order mark is no fault"
    for text, said in (
        (b'{"examples": ["\xff"]}', "is no JSON"),
        (json.dumps(BIG | {"output_regex": "("}).encode(), "no regular expression"),
    ):
        path.write_bytes(text)
        with pytest.raises(DataError, match=said):
            open_bigbench(path)
    with zipfile.ZipFile(tmp_path / "big.zip", "w") as packed:
        packed.writestr("tiny/task.json", json.dumps(BIG))
    torn = (tmp_path / "big.zip").read_bytes().replace(b'"input": "1 + 1?"', b'"input": "1 - 1?"')
    (tmp_path / "big.zip").write_bytes(torn)
    with pytest.raises(DataError, match="cannot be unpacked"):
        open_bigbench("bigbench:tiny", tmp_path / "big.zip")


def test_data_of_a_person_who_is_not_there_is_missing(tmp_path):
    (tmp_path / "mine.toml").write_text(MINE, encoding="utf-8")
    with pytest.raises(DataError, match=r"~nobody-here/x\.jsonl: there is no such file"):
        open_task(tmp_path / "mine.toml", Judging(data="~nobody-here/x.jsonl"))
    with pytest.raises(DataError, match="~nobody-here: there is no such file or directory"):
        open_task("gsm8k", Judging(data="~nobody-here/x", shots=2))
    with pytest.raises(DataError, match="~nobody-here: there is no such file of BIG-bench"):
        open_bigbench("bigbench:tiny", "~nobody-here")


def test_records_that_share_an_id_become_items_of_their_own(tmp_path):
    (tmp_path / "mine.toml").write_text(MINE, encoding="utf-8")
    records = [{"id": "x", "q": f"Q{i}", "answer": "b", "choices": ["a", "b"]} for i in range(3)]
    task = open_task(tmp_path / "mine.toml", Judging(data=written(tmp_path / "d.jsonl", records), limit=2))
    assert [(item.id, item.prompt) for item in task.items] == [("x", "Q: Q0\nA:"), ("x (2)", "Q: Q1\nA:")]


def test_a_task_of_bigbench_is_read_as_it_is(tmp_path):
    (tmp_path / "sums" / "tiny").mkdir(parents=True)
    path = tmp_path / "sums" / "tiny" / "task.json"
    path.write_text(json.dumps(BIG), encoding="utf-8")
    graded, written_ = open_bigbench("bigbench:sums/tiny", tmp_path)
    assert is_bigbench(path) and is_bigbench("bigbench:x") and not is_bigbench("arc_easy")
    assert graded.items[0].prompt == "\nIn: 1 + 1?\n  choice: 2\n  choice: 3\n  choice: 4\nOut: "
    assert graded.items[0].worth == (1, 0, 0.5)
    assert graded.items[0].chance == pytest.approx(0.5)
    assert "example 2" in graded.bad[0].where
    assert written_.items[0].answer == "2"
    assert written_.scorer.extract["exact_str_match"].pattern == "\\d+"
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.write(path, "sums/tiny/task.json")
    assert open_bigbench("bigbench:sums/tiny", tmp_path / "all.zip")[0].items == tuple(
        type(item)(**{**vars(item), "id": other.id})
        for item, other in zip(
            graded.items, open_bigbench("bigbench:sums/tiny", tmp_path / "all.zip")[0].items, strict=True
        )
    )
    for broken, said in ("[]", "no task of BIG-bench"), ("{", "no JSON"), ('{"examples": []}', "no items"):
        path.write_text(broken, encoding="utf-8")
        with pytest.raises(DataError, match=said):
            open_bigbench(path)
    with pytest.raises(DataError, match="has no x/task"):
        open_bigbench("bigbench:x", tmp_path / "all.zip")
    with pytest.raises(DataError, match="has no sums/task") as caught:
        open_bigbench("bigbench:sums", tmp_path / "all.zip")
    assert caught.value.todo == "Of that name it has sums/tiny."
    with pytest.raises(DataError, match="no such file"):
        open_bigbench("bigbench:x", tmp_path)


@pytest.mark.parametrize(
    "targets",
    [
        {"choices": ["a", "b"]},
        {"choices": ["a", "b"], "labels": ["x", "y"]},
        {"choices": ["a", "b"], "labels": [1, None]},
        {"choices": 3, "labels": [1, 0]},
        {"choices": ["a", 3], "labels": [1, 0]},
    ],
)
def test_targets_that_are_none_are_told(targets):
    record = {"question": "Q", "mc1_targets": targets}
    with pytest.raises(DataError, match=r"^here:1: "):
        READINGS["truthfulqa_mc1"](record, "here:1")


def test_right_and_wrong_answers_are_texts():
    with pytest.raises(DataError, match="must be texts"):
        READINGS["truthfulqa_mc2"]({"question": "Q", "correct": ["a"], "incorrect": [3]}, "here:1")
