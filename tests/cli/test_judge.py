"""eval scores models on questions; compare-tokenizers scores tokenizers on text they have not seen."""

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


def test_kinds_of_tokenizer_are_compared_side_by_side(models, tmp_path):
    (tmp_path / "corpus.txt").write_text("".join(f"line {n * 7 % 13} says hello world\n" for n in range(60)))
    words = ("compare-tokenizers", "--data", tmp_path / "corpus.txt", "--vocab-size", 290, "--json")
    rows = json.loads(ask(*words, "--kinds", "byte-bpe, char", "--tokenizer", models / "a").stdout)
    assert [row["tokenizer"] for row in rows] == [str(models / "a"), "byte-bpe", "char"]
    assert all(row["round_trip"] == 1.0 for row in rows)
    byte_bpe, char = rows[1:]
    assert byte_bpe["bytes_per_token"] > char["bytes_per_token"]


def test_comparing_tokenizers_needs_text_for_both_sides(tmp_path):
    (tmp_path / "corpus.txt").write_text("one line")
    found = ask("compare-tokenizers", "--data", tmp_path / "corpus.txt")
    assert found.exit_code == 1
    assert "too little text" in found.stderr
    (tmp_path / "two.txt").write_text("one line\nand another")
    found = ask("compare-tokenizers", "--data", tmp_path / "two.txt", "--kinds", "bytepbe")
    assert found.exit_code == 1
    assert "byte-bpe" in found.stderr
