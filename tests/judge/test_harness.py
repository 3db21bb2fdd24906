from __future__ import annotations

import json

import pytest

from stockpot.errors import ConfigError, DataError, GenerationError
from stockpot.generate.engine import Engine
from stockpot.judge.harness import Report, compare, evaluate, reading
from stockpot.judge.taskfiles import Judging
from stockpot.judge.tasks import Item, Task

CHOICES = Task(
    "choices",
    "1",
    tuple(Item(f"c{i}", f"What is {i}?", "yes", ("yes", "no", "maybe")) for i in range(6)),
)
FREE = Task("free", "1", tuple(Item(f"f{i}", f"Say {i}.", str(i)) for i in range(4)))


@pytest.fixture(scope="module")
def bundle(make_bundle):
    return make_bundle()


def test_each_score_has_its_number_chance_and_interval(bundle):
    report = evaluate(bundle, [CHOICES, FREE], Judging(max_tokens=4))
    assert {(row.task, row.metric) for row in report.rows} == {
        *(("choices", metric) for metric in ("exact", "choice", "margin", "brier", "log_prob")),
        *(("free", metric) for metric in ("exact", "log_prob")),
        *(("all", metric) for metric in ("exact", "choice", "margin", "brier", "log_prob")),
    }
    choice = report.row("choices", "choice").estimate
    assert (choice.n, choice.chance) == (6, pytest.approx(1 / 3))
    assert choice.low <= choice.value <= choice.high
    assert report.row("all", "exact").estimate.n == 10
    assert report.row("all", "choice").estimate.n == 6
    with pytest.raises(KeyError):
        report.row("free", "choice")


def test_a_choice_is_the_likeliest_per_byte(bundle):
    report = evaluate(bundle, [CHOICES], Judging(max_tokens=2))
    engine = Engine(bundle)
    for answer in report.answers["choices"]:
        pairs = [(f"Question: {answer.item.question}\nAnswer:", f" {one}") for one in answer.item.choices]
        scores = [score.log_prob / score.bytes for score in engine.score(pairs)]
        assert answer.choice == answer.item.choices[scores.index(max(scores))]
        assert answer.scores["margin"] == pytest.approx(scores[0] - max(scores[1:]), abs=1e-4)


def test_chat_models_are_asked_as_they_were_trained(make_bundle):
    assert evaluate(make_bundle(), [FREE], Judging(max_tokens=2)).wording == "plain"
    assert evaluate(make_bundle(chat=True), [FREE], Judging(max_tokens=2)).wording == "chat"
    assert evaluate(make_bundle(chat=True), [FREE], Judging(max_tokens=2, wording="plain")).wording == "plain"


def test_a_report_is_read_back_as_it_was_written(bundle, tmp_path):
    report = evaluate(bundle, [CHOICES, FREE], Judging(max_tokens=3))
    path = report.save(tmp_path / "deep" / "folder")
    assert Report.load(path) == report
    path.write_text(path.read_text(encoding="utf-8")[:-30], encoding="utf-8")
    with pytest.raises(DataError, match="not a whole report"):
        Report.load(path)
    path.write_text(json.dumps(report.to_dict() | {"answers": []}), encoding="utf-8")
    with pytest.raises(DataError, match="not a whole report"):
        Report.load(path)
    path.write_text(json.dumps({"model": "x"}), encoding="utf-8")
    with pytest.raises(DataError, match="not a whole report"):
        Report.load(path)


@pytest.mark.parametrize("limit", [0, -3])
def test_a_limit_that_is_none_is_refused(bundle, limit):
    with pytest.raises(ConfigError, match="limit"):
        evaluate(bundle, ["village/sums"], limit=limit)


def test_models_are_compared_on_the_same_questions_only(make_bundle):
    reports = [evaluate(make_bundle(seed=seed), [CHOICES], Judging(max_tokens=2)) for seed in (0, 1)]
    rows = {row.metric: row for row in compare(*reports)}
    assert set(rows) == {f"{name} gain" for name in ("exact", "choice", "margin", "brier", "log_prob")}
    assert {(row.task, row.estimate.n) for row in rows.values()} == {("choices", 6)}
    assert 0 < rows["exact gain"].p <= 1 and rows["margin gain"].p is None
    same = compare(reports[0], reports[0])
    assert {row.estimate.value for row in same} == {0}
    assert {reading(row) for row in same} == {"inside the noise"}
    other = Task("choices", "2", CHOICES.items)
    with pytest.raises(ValueError, match="other items"):
        compare(reports[0], evaluate(make_bundle(), [other], Judging(max_tokens=2)))


def test_a_question_that_does_not_fit_the_model_is_named(bundle):
    long = Task("long", "1", (Item("L7", "why " * 200, "x"),))
    with pytest.raises(GenerationError, match="L7"):
        evaluate(bundle, [long])


def test_a_question_that_no_tokenizer_takes_is_left_out_and_told(bundle):
    torn = Task("torn", "1", (Item("t0", "why \ud800", "x"), Item("t1", "why", "x")))
    report = evaluate(bundle, [torn], Judging(max_tokens=2))
    assert [answer.item.id for answer in report.answers["torn"]] == ["t1"]
    assert "lone surrogate" in report.not_judged()[0]


def test_tasks_of_one_name_are_told_apart(bundle):
    """One would overwrite the other's answers in the report."""
    other = Task("free", "1", FREE.items[:2])
    with pytest.raises(ConfigError, match="Two different tasks are called free"):
        evaluate(bundle, [FREE, other])
    report = evaluate(bundle, [FREE, FREE], Judging(max_tokens=2))
    assert [row.metric for row in report.rows] == ["exact", "log_prob"], "the same one is asked once"


def test_an_encoder_is_not_asked_to_write(make_bundle):
    with pytest.raises(GenerationError, match="encoder"):
        evaluate(make_bundle("encoder"), [FREE])
