"""A model as rater: both orders, the bias of the place, and what people said."""

from __future__ import annotations

import json
import math

import pytest

from stockpot.data.sources import read_records
from stockpot.errors import ConfigError, DataError
from stockpot.generate.engine import Engine
from stockpot.generate.request import Score
from stockpot.stages.ai_feedback import FeedbackConfig, ai_feedback

PAIRS = ("village:preferences/val:0:20",)


def judging(monkeypatch, log_odds):
    """Let the judge find "A" ``log_odds(first, second)`` nats likelier than "B"."""

    def score(self, pairs):
        found = []
        for prompt, letter in pairs:
            text = prompt if isinstance(prompt, str) else prompt[-1].content
            first, second = text.split("\n\nAnswer A: ")[1].split("\n\nAnswer B: ")
            odds = log_odds(first, second.split("\n\nWhich answer")[0])
            found.append(Score(odds if letter.strip() == "A" else 0.0, 1, 1, False, -1.0))
        return found

    monkeypatch.setattr(Engine, "score", score)


def test_a_judge_that_knows_agrees_with_people(monkeypatch, tiny_base, tmp_path):
    better = {record.chosen for record in read_records(PAIRS) if not record.tie}
    worse = {record.rejected for record in read_records(PAIRS) if not record.tie} - better
    judging(monkeypatch, lambda first, second: 2.0 if second in worse else -2.0)
    found = ai_feedback(FeedbackConfig(judge=str(tiny_base), data=PAIRS), out=tmp_path)
    assert found.pairs == 20
    assert found.agreement.value > 0.7 and found.agreement.chance == 0.5
    again = list(read_records(str(tmp_path / "comparisons.jsonl")))
    assert len(again) == 20
    assert (again[0].source, again[0].annotator) == ("ai-feedback", str(tiny_base))
    assert {record.margin for record in again if not record.tie} == {2.0}
    assert json.loads((tmp_path / "feedback.json").read_text())["agreement"]["n"] == found.agreement.n


def test_a_judge_that_looks_at_the_place_only_decides_nothing(monkeypatch, tiny_base, tmp_path):
    judging(monkeypatch, lambda first, second: 3.0)
    found = ai_feedback(FeedbackConfig(judge=str(tiny_base), data=PAIRS), out=tmp_path)
    assert (found.first.value, found.consistent.value) == (1.0, 0.0)
    assert found.agreement.value == 0.5
    assert all(record.tie for record in read_records(str(tmp_path / "comparisons.jsonl")))


def test_what_the_place_adds_cancels_in_the_margin(monkeypatch, tiny_base, tmp_path):
    judging(monkeypatch, lambda first, second: 0.5 + (2.0 if first < second else -2.0))
    found = ai_feedback(FeedbackConfig(judge=str(tiny_base), data=PAIRS, limit=5), out=tmp_path)
    assert found.first.value == 0.5 and found.consistent.value == 1.0
    assert all(one["margin"] == pytest.approx(2.0, abs=1e-3) for one in found.comparisons)


def test_a_judge_that_cannot_say_favours_neither(monkeypatch, tiny_base, tmp_path):
    judging(monkeypatch, lambda first, second: 0.0)
    found = ai_feedback(FeedbackConfig(judge=str(tiny_base), data=PAIRS), out=tmp_path)
    assert found.first.value == found.agreement.value == 0.5
    assert all(record["tie"] for record in found.comparisons)


def test_comparisons_are_never_overwritten(monkeypatch, tiny_base, tmp_path):
    judging(monkeypatch, lambda first, second: 1.0)
    config = FeedbackConfig(judge=str(tiny_base), data=PAIRS, limit=2)
    ai_feedback(config, out=tmp_path)
    before = (tmp_path / "comparisons.jsonl").read_bytes()
    with pytest.raises(ConfigError, match="holds comparisons already"):
        ai_feedback(config.model_copy(update={"limit": 3}), out=tmp_path)
    assert (tmp_path / "comparisons.jsonl").read_bytes() == before


def test_a_conversation_reaches_the_judge_and_the_file_whole(tiny_base, tmp_path):
    said = [("system", "Be brief."), ("user", "Hello!"), ("assistant", "Hi."), ("user", "Who are you?")]
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(
        json.dumps({"messages": [{"role": r, "content": c} for r, c in said]}), encoding="utf-8"
    )
    config = FeedbackConfig(
        judge=str(tiny_base),
        model=str(tiny_base),
        data=str(prompts),
        max_tokens=5,
        question="{prompt} {first} {second} A or B?",
    )
    (comparison,) = ai_feedback(config, out=tmp_path / "out").comparisons
    assert [(one["role"], one["content"]) for one in comparison["prompt"]] == said


def test_answers_are_drawn_where_there_are_none(tiny_base, tmp_path):
    config = FeedbackConfig(
        judge=str(tiny_base),
        model=str(tiny_base),
        data=("village:prompts/val:0:6",),
        max_tokens=5,
        question="{prompt} {first} {second} A or B?",
    )
    found = ai_feedback(config, out=tmp_path)
    assert 1 <= found.pairs <= 6 and found.agreement is None
    assert 0 <= found.first.value <= 1 and not math.isnan(found.consistent.value)
    for record in read_records(str(tmp_path / "comparisons.jsonl")):
        assert record.chosen != record.rejected


def test_what_does_not_fit_is_refused(tiny_base, tmp_path):
    with pytest.raises(ConfigError, match="no judge"):
        ai_feedback(FeedbackConfig(), out=tmp_path)
    with pytest.raises(ConfigError, match=r"lacks \{second\}"):
        FeedbackConfig(question="{prompt} {first}")
    with pytest.raises(DataError, match="has no two answers"):
        ai_feedback(FeedbackConfig(judge=str(tiny_base), data=("village:prompts:0:3",)), out=tmp_path)
    assert not any(tmp_path.iterdir())
