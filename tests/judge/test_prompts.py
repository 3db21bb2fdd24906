"""The same items in many wordings: probabilities by hand, the spread, and the verb."""

from __future__ import annotations

import json
import math

import pytest
import torch
from typer.testing import CliRunner

import stockpot as sp
from stockpot.cli.main import app
from stockpot.errors import ConfigError, GenerationError
from stockpot.judge.prompts import prompts
from stockpot.prompt.items import Questions
from stockpot.prompt.shots import Shots


def ask(*words):
    return CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "200"})


@pytest.fixture(scope="module")
def report(make_bundle):
    return prompts(make_bundle(context=512), "lecture")


def test_the_lectures_item_has_its_own_probability_in_each_wording(report, make_bundle):
    bundle = make_bundle(context=512)
    assert len(report.scores) >= 20
    before = bundle.encode("John ate pasta for supper. John ate pasta for dinner.")
    after = bundle.tokenizer.encode(" entailment")
    with torch.inference_mode():
        rows = bundle.model(torch.tensor([before + after])).logits[0].log_softmax(-1)
    by_hand = sum(float(rows[len(before) - 1 + i, id]) for i, id in enumerate(after))
    assert report.score("bare").log_prob.value == pytest.approx(by_hand, abs=1e-4)
    assert report.score("bare").probability == pytest.approx(math.exp(by_hand), rel=1e-3)
    assert len({one.log_prob.value for one in report.scores}) > 10
    with pytest.raises(KeyError):
        report.score("none such")


def test_the_report_shows_the_spread_and_guessing(report):
    text = str(report)
    assert f"{len(report.scores)} wordings, 1 item; guessing scores 0.50, the commonest label 1.00" in text
    low, middle, high = report.spread("calibrated")
    assert 0 <= low <= middle <= high <= 1
    assert json.loads(json.dumps(report.to_dict()))["scores"][0]["wording"] == "bare"


def test_free_answers_are_scored_and_written(make_bundle):
    found = prompts(make_bundle(context=512), Questions(task="sums", limit=4, wordings=("q-a", "bare")))
    assert [one.wording for one in found.scores] == ["q-a", "bare"]
    for one in found.scores:
        assert one.log_prob.n == 4
        assert set(one.accuracy) == {"written"}
        assert one.share is None


def test_examples_change_what_is_read(make_bundle):
    bundle, asked = make_bundle(context=512), Questions(task="sentiment", limit=3, wordings=("slashes",))
    none, some = prompts(bundle, asked), prompts(bundle, asked, shots=Shots(k=3))
    assert some.scores[0].tokens > none.scores[0].tokens
    assert some.scores[0].log_prob.value != none.scores[0].log_prob.value
    similar = prompts(bundle, asked, shots=Shots(k=2, select="similar"))
    assert similar.scores[0].tokens > none.scores[0].tokens


def test_chat_needs_a_template(make_bundle):
    asked = Questions(task="lecture", chat=True, wordings=("bare", "question"))
    with pytest.raises(ConfigError, match="no chat template"):
        prompts(make_bundle(context=512), asked)
    found = prompts(make_bundle(context=512, chat=True), asked)
    assert found.scores[0].log_prob.value < 0


def test_the_verb_prints_a_table_and_json(make_bundle, tmp_path):
    model = sp.save(tmp_path / "model", make_bundle(context=512))
    words = ("prompts", model, "--task", "lecture", "--wording", "bare", "--wording", "question")
    shown = ask(*words)
    assert shown.exit_code == 0, shown.stderr
    assert "P(right)" in shown.stdout
    value = json.loads(ask(*words, "--json").stdout)
    assert [one["wording"] for one in value["scores"]] == ["bare", "question"]
    for wrong, said in (
        (("--wording", "nothing"), "has no wording"),
        (("--select", "best"), "balanced"),
        (("--task", "x"), "no such"),
    ):
        failed = ask(*words, *wrong)
        assert failed.exit_code == 1
        assert said in failed.stderr


def test_the_verb_draws_accuracy_by_number_of_examples(make_bundle, tmp_path):
    model = sp.save(tmp_path / "model", make_bundle(context=512))
    words = ("prompts", model, "--task", "sentiment", "--wording", "slashes", "--limit", 3)
    shown = ask(*words, "--curve", "2,0", "--draws", 1, "--lr", 1e-3, "--out", tmp_path / "curve")
    assert shown.exit_code == 0, shown.stderr
    head, nothing, some, *_ = shown.stdout.splitlines()
    assert "flipped" in head and "gradient steps" in head
    assert (nothing.split()[0], some.split()[0]) == ("0", "2")
    points = json.loads((tmp_path / "curve" / "curve.json").read_text())["points"]
    assert len(points) == 4 * 2
    assert (tmp_path / "curve" / "curve.svg").read_text().startswith("<svg")
    failed = ask(*words, "--curve", "1,two")
    assert failed.exit_code == 1 and "no list of numbers" in failed.stderr


def test_each_question_is_calibrated_by_its_own_examples(make_bundle, monkeypatch):
    """With examples drawn for each question, a question alone is judged as it is among others."""
    import stockpot.judge.prompts as room

    seen = []
    rescale = room.calibrated
    monkeypatch.setattr(
        room, "calibrated", lambda found, lean: seen.append((found, lean)) or rescale(found, lean)
    )
    bundle = make_bundle(context=512)
    asked = Questions(task="sentiment", limit=3, wordings=("slashes",))
    asking, pool = asked.open()
    engine = room.Engine(bundle)
    shown = room.choose(pool, Shots(k=2, select="similar"), pool.questions, engine.embed)
    assert len({tuple(one.item.key for one in row) for row in shown}) == 3
    room.ask_wording(engine, asking, "slashes", pool, shown)
    together, seen[:] = list(seen), []
    assert len(together) == 3
    for place, row in enumerate(shown):
        alone = type(pool)((pool.questions[place],), pool.examples, pool.labels, pool.source)
        room.ask_wording(engine, asking, "slashes", alone, [row])
        for got, wanted in zip(seen.pop(), together[place], strict=True):
            assert got == pytest.approx(wanted, abs=1e-4)


def test_room_is_kept_for_the_word_and_not_for_the_labels_name(make_bundle, tmp_path):
    long = "yes no maybe blue red green yes no maybe blue red green yes no maybe blue red green"
    (tmp_path / "t.toml").write_text(
        'name = "t"\n[fields]\nq = ["q"]\n[labels]\na = []\nb = []\n[wordings.one]\ntext = "{{ q }}"\n'
        f'words = {{ a = "{long}", b = "no" }}\n[[items]]\nq = "What is it?"\nlabel = "a"\n'
        '[[items]]\nq = "Is it?"\nlabel = "b"\n',
        encoding="utf-8",
    )
    bundle = make_bundle(context=96)
    assert prompts(bundle, str(tmp_path / "t.toml")).scores[0].log_prob.n == 2
    tight = make_bundle(context=len(bundle.tokenizer.encode(f" {long}")) + 4)
    with pytest.raises(GenerationError, match="has room for"):
        prompts(tight, str(tmp_path / "t.toml"))
