"""eval scores models on questions and says how sure it is."""

from __future__ import annotations

import json

import pytest
import torch
from typer.testing import CliRunner

import stockpot as sp
from stockpot.cli.main import app
from stockpot.model.transformer import Transformer


def ask(*words: object):
    return CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "200"})


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Save two tiny models with different random weights, and a task."""
    folder = tmp_path_factory.mktemp("models")
    tokenizer = sp.Tokenizer.train(["one two three four"] * 3, kind="byte-bpe", vocab_size=280)
    for seed, name in enumerate(("a", "b")):
        torch.manual_seed(seed)
        model = Transformer(
            sp.decoder(layers=1, dim=32, heads=2, context=128, vocab_size=tokenizer.vocab_size)
        )
        sp.save(folder / name, sp.Bundle(model, tokenizer))
    questions = [
        {"question": f"{n}?", "answer": "yes" if n % 2 else "no", "choices": ["yes", "no"]} for n in range(6)
    ]
    (folder / "task.jsonl").write_text("\n".join(map(json.dumps, questions)))
    return folder


def test_eval_reports_scores_with_chance_and_interval(models):
    found = ask("eval", models / "a", "--task", models / "task.jsonl", "--json")
    assert found.exit_code == 0, found.stderr
    (report,) = json.loads(found.stdout)
    assert report["model"] == str(models / "a")
    for row in report["rows"]:
        assert row["n"] == 6
        assert row["low"] <= row["value"] <= row["high"]
    assert {row["chance"] for row in report["rows"]} >= {0.5}
    assert "95 % interval" in ask("eval", models / "a", "--task", models / "task.jsonl").stdout


def test_eval_compares_models_on_the_same_questions(models):
    found = ask("eval", models / "a", models / "b", "--task", models / "task.jsonl", "--limit", 4)
    assert found.exit_code == 0, found.stderr
    assert f"{models / 'b'} minus {models / 'a'}, the same questions" in found.stdout


def test_eval_writes_a_report_for_each_model(models, tmp_path):
    found = ask(
        "eval", models / "a", models / "b", "--task", models / "task.jsonl", "--out", tmp_path / "evals"
    )
    assert found.exit_code == 0, found.stderr
    reports = sorted((tmp_path / "evals").rglob("report.json"))
    assert len(reports) == 2
    assert all(json.loads(path.read_text())["rows"] for path in reports)


@pytest.mark.parametrize(
    ("words", "code"), [(("--wording", "rude"), 2), (("--limit", "0"), 2), (("--task", "nothing.jsonl"), 1)]
)
def test_eval_refuses_what_it_cannot_do(models, words, code):
    assert ask("eval", models / "a", *words).exit_code == code
