"""Items come from the village or a file; what is asked is never shown."""

from __future__ import annotations

import json

import pytest

from stockpot.errors import ConfigError, DataError
from stockpot.prompt.items import Questions, load_pool
from stockpot.prompt.wordings import find_asking


@pytest.fixture
def lines(tmp_path):
    def write(*records):
        path = tmp_path / "items.jsonl"
        path.write_text("".join(json.dumps(one) + "\n" for one in records), encoding="utf-8")
        return path

    return write


@pytest.mark.parametrize(("task", "labels"), [("nli", 3), ("sentiment", 3), ("sums", 0)])
def test_the_village_asks_on_one_side_and_shows_on_the_other(task, labels):
    pool = load_pool(find_asking(task), limit=30)
    assert len(pool.questions) == 30
    assert len(pool.examples) > 100
    assert len(pool.labels) == labels
    assert not {item.key for item in pool.questions} & {item.key for item in pool.examples}
    assert pool == load_pool(find_asking(task), limit=30)


def test_village_sums_come_with_their_steps():
    item = load_pool(find_asking("sums"), "village:steps", limit=1).questions[0]
    assert item.worked.count("=") == 2
    assert item.worked.rstrip(".").endswith(item.answer)


def test_a_file_is_split_without_overlap_and_by_the_seed(lines):
    path = lines(*({"sentence": f"text {i % 8}", "label": i % 2} for i in range(16)))
    pool = load_pool(find_asking("sentiment"), path, limit=3)
    assert (len(pool.questions), len(pool.examples)) == (3, 5)
    assert pool.labels == ("positive", "negative")
    assert not {item.key for item in pool.questions} & {item.key for item in pool.examples}
    assert load_pool(find_asking("sentiment"), path, limit=3, seed=1).questions != pool.questions


def test_examples_that_are_asked_are_left_out(lines):
    path = lines({"text": "a", "label": "positive"}, {"text": "b", "label": "negative"})
    pool = load_pool(find_asking("sentiment"), path, examples=path, limit=1)
    assert [item.key for item in pool.examples] == [({"a", "b"} - {pool.questions[0].key}).pop()]


def test_numbers_and_worked_solutions_are_understood(lines):
    path = lines({"question": "q", "answer": 9.0}, {"question": "r", "answer": "23 - 20 = 3\n#### 1,003"})
    found = {item.key: item for item in load_pool(find_asking("sums"), path).questions}
    assert found["q"].answer == "9"
    assert (found["r"].answer, found["r"].worked) == ("1003", "23 - 20 = 3")


@pytest.mark.parametrize(
    ("records", "said"),
    [
        ([{"text": "a", "label": "splendid"}], r"items.jsonl:1: the answer 'splendid'"),
        ([{"txet": "a", "label": "positive"}], r"items.jsonl:1: 'text' is missing \(found: txet, label\)"),
        ([{"text": "a"}], "there is no label or answer"),
        ([{"text": "a", "label": "positive"}] * 2, "nothing to choose"),
        ([], "holds no items"),
    ],
)
def test_what_is_no_item_is_named(lines, records, said):
    with pytest.raises(DataError, match=said):
        load_pool(find_asking("sentiment"), lines(*records))


def test_an_answer_that_is_no_candidate_is_named(lines):
    asking = find_asking("nli").model_copy(update={"candidates": ("entailment", "contradiction")})
    pairs = [{"premise": str(i), "hypothesis": "h", "label": label} for i, label in enumerate(asking.labels)]
    with pytest.raises(DataError, match="'neutral' is not among the candidates entailment, contradiction"):
        load_pool(asking, lines(*pairs))


def test_an_unknown_corner_of_the_village_is_named():
    with pytest.raises(ConfigError, match="village:entailment"):
        load_pool(find_asking("nli"), "village:quarrels")


def test_a_name_stands_for_its_task():
    asking, pool = Questions.of("lecture").open()
    assert asking.name == "lecture"
    assert pool.labels == ("entailment", "contradiction")
    assert Questions(task="lecture", wordings=("bare",)).open()[0].wordings.keys() == {"bare"}


@pytest.mark.parametrize(
    ("task", "file", "labels"),
    [
        ("nli", "sick_test", {"entailment", "contradiction", "neutral"}),
        ("nli", "rte", {"entailment", "not_entailment"}),
        ("sentiment", "sst2_dev", {"positive", "negative"}),
        ("sentiment", "financial_phrasebank", {"positive", "negative", "neutral"}),
        ("sums", "multiarith", set()),
        ("sums", "gsm8k_test", set()),
        ("sums", "svamp", set()),
    ],
)
def test_the_usual_data_sets_are_read_as_they_are(shared_eval, task, file, labels):
    pool = load_pool(find_asking(task), shared_eval / f"{file}.jsonl.gz", limit=20)
    assert set(pool.labels) == labels
    assert len(pool.questions) == 20
