"""probe: from annotated text to a table, JSON and charts."""

from __future__ import annotations

import json

import pytest
import torch
from typer.testing import CliRunner

import stockpot as sp
from stockpot.cli.main import app
from stockpot.model.transformer import Transformer


def run(*words: object):
    return CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "200"})


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Save a tiny decoder with random weights."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tokenizer = sp.Tokenizer.train(["one two three four"] * 3, kind="byte-bpe", vocab_size=280)
    torch.manual_seed(0)
    shape = sp.decoder(layers=1, dim=32, heads=2, context=128, vocab_size=tokenizer.vocab_size)
    return sp.save(folder, sp.Bundle(Transformer(shape), tokenizer))


@pytest.fixture(scope="module")
def sentences(tmp_path_factory):
    """Write tagged words of twelve documents."""
    path = tmp_path_factory.mktemp("probing") / "words.conllu"
    lines = []
    for number in range(36):
        lines.append(f"# sent_id = d{number // 3}-{number}")
        for place in range(6):
            word = ["one", "two", "red", "blue"][(number * 5 + place * place) % 4]
            tag = "NUM" if word in ("one", "two") else "ADJ"
            lines.append(f"{place + 1}\t{word}\t_\t{tag}\t_\t_\t0\troot\t_\t_")
        lines.append("")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_probe_prints_a_table_and_leaves_charts(model, sentences, tmp_path):
    out = tmp_path / "out"
    found = run("probe", model, "--data", sentences, "--seeds", 1, "--epochs", 1, "--out", out)
    assert found.exit_code == 0, found.stderr
    assert "expected layer" in found.stdout and "pos" in found.stdout
    saved = json.loads((out / "probe.json").read_text(encoding="utf-8"))
    assert saved["model"] == str(model) and saved["layers"] == [0, 1]
    assert (out / "places.svg").is_file()


def test_probe_answers_in_json(model, sentences):
    found = run("probe", model, "--data", sentences, "--seeds", 1, "--epochs", 1, "--mdl", "--json")
    assert found.exit_code == 0, found.stderr
    (task,) = json.loads(found.stdout)["tasks"]
    assert task["task"] == "pos" and task["bits"] > 0 and len(task["selectivity"]) == 2


def test_probe_names_what_is_wrong(model, sentences, tmp_path):
    assert "no such file" in run("probe", model, "--data", tmp_path / "none.conllu").stderr
    assert run("probe", model, "--data", sentences, "--stack", "both").exit_code == 2
    found = run("probe", model, "--data", sentences, "--layers", "0,5")
    assert found.exit_code == 1 and "from 0 to 1" in found.stderr


def test_probe_knows_the_villages_own_parses(model):
    found = run("probe", model, "--limit", 80, "--seeds", 1, "--epochs", 1, "--json")
    assert found.exit_code == 0, found.stderr
    tasks = [one["task"] for one in json.loads(found.stdout)["tasks"]]
    assert tasks == ["pos", "constituents", "dependencies", "entities", "roles", "coreference"]


def test_emergence_reads_published_results(tmp_path):
    points = [
        {"model": f"m{i}", "flops": 10.0**i, "exact": float(i > 2), "nats": 3.0 - i / 3} for i in range(6)
    ]
    path = tmp_path / "theirs.json"
    path.write_text(json.dumps({"task": "theirs", "points": points}), encoding="utf-8")
    found = run("emergence", "--published", path, "--out", tmp_path / "out")
    assert found.exit_code == 0, found.stderr
    assert "does not survive" in found.stdout and (tmp_path / "out" / "theirs.svg").is_file()


def test_emergence_says_what_it_lacks(tmp_path, model):
    assert "needs a folder" in run("emergence").stderr
    assert "make no curve" in run("emergence", model, model, "--task", "sums/2", "--items", 10).stderr
    found = run("emergence", "--published", tmp_path / "none.json")
    assert found.exit_code == 1 and "none.json" in found.stderr


def test_three_kinds_refuses_keys_that_are_not_two():
    assert run("three-kinds", "--fields", "de").exit_code == 2


def test_three_kinds_names_a_file_that_is_missing(tmp_path):
    found = run("three-kinds", "--pairs", tmp_path / "none.jsonl", "--minutes", 0.1)
    assert found.exit_code == 1 and "none.jsonl" in found.stderr
