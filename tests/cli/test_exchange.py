"""pull and convert: models in and out on the command line."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from stockpot.bundle import Bundle
from stockpot.cli.main import app
from stockpot.gguf_directory import read_directory
from stockpot.model.config import decoder
from stockpot.model.transformer import Transformer
from stockpot.text.chat import ChatTemplate
from stockpot.text.tokenizer import Tokenizer
from stockpot.weights.store import load, save


def ask(*words: object):
    return CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "200"})


@pytest.fixture
def folder(tmp_path):
    tokenizer = Tokenizer.train(["the cat sat on the mat"] * 9, vocab_size=300)
    model = Transformer(decoder(layers=1, dim=32, heads=4, context=64, vocab_size=tokenizer.vocab_size))
    return save(tmp_path / "model", Bundle(model, tokenizer, ChatTemplate.of(tokenizer)))


def test_a_folder_becomes_a_file_and_a_folder_again(folder, tmp_path):
    found = ask("convert", folder, tmp_path / "m.gguf", "--quantize", "q8_0", "--json")
    assert found.exit_code == 0, found.stderr
    path = tmp_path / "m.gguf"
    assert json.loads(found.stdout)["path"] == str(path)
    assert json.loads(found.stdout)["bytes"] == path.stat().st_size
    assert read_directory(path).tensors["blk.0.attn_q.weight"].kind.name == "Q8_0"
    found = ask("convert", path, tmp_path / "back")
    assert found.exit_code == 0, found.stderr
    assert load(tmp_path / "back").tokenizer.fingerprint == load(folder).tokenizer.fingerprint


def test_dtype_sets_the_numbers(folder, tmp_path):
    found = ask("convert", folder, tmp_path / "m.gguf", "--dtype", "float16")
    assert found.exit_code == 0, found.stderr
    assert found.stdout.startswith(f"{tmp_path / 'm.gguf'}  ")
    assert read_directory(tmp_path / "m.gguf").tensors["blk.0.attn_q.weight"].kind.name == "F16"


def test_inspect_says_what_a_gguf_file_holds(folder, tmp_path):
    ask("convert", folder, tmp_path / "m.gguf", "--quantize", "q4_0")
    found = json.loads(ask("inspect", tmp_path / "m.gguf", "--json").stdout)
    assert (found["kind"], found["format"], found["family"]) == ("model", "GGUF", "qwen3")
    assert found["embedding_length"] == 32
    assert found["chat template"] == "present"
    assert found["parameters"] == load(folder).model.config.parameters()
    assert "Q4_0" in found["numbers"]


def test_generate_and_chat_take_the_file(folder, tmp_path):
    ask("convert", folder, tmp_path / "m.gguf")
    for words in (("generate", tmp_path / "m.gguf", "the cat"), ("chat", tmp_path / "m.gguf")):
        found = CliRunner().invoke(app, [*map(str, words), "--max-tokens", "3"], input="the cat\n")
        assert found.exit_code == 0, found.stderr


def test_what_cannot_be_written_is_two_lines(folder, tmp_path):
    found = ask("convert", folder, tmp_path / "other", "--quantize", "q8_0")
    assert found.exit_code == 1
    assert found.stderr.splitlines() == [
        "error: Only GGUF files are written quantised.",
        "       Give a path that ends in .gguf.",
    ]


def test_pull_lists_what_is_known(tmp_path, monkeypatch):
    monkeypatch.setenv("STOCKPOT_HOME", str(tmp_path))
    found = json.loads(ask("pull", "--json").stdout)
    assert {row["name"]: row["here"] for row in found} == {"smollm2": False, "minilm": False}
    assert "Apache-2.0" in ask("pull").stdout


def test_a_known_model_that_is_absent_names_the_command(tmp_path, monkeypatch):
    monkeypatch.setenv("STOCKPOT_HOME", str(tmp_path))
    for words in (("chat", "smollm2"), ("generate", "smollm2", "x"), ("inspect", "smollm2")):
        found = ask(*words)
        assert found.exit_code == 1
        assert "stockpot pull smollm2" in found.stderr.splitlines()[1]


def test_an_unknown_name_lists_the_known(tmp_path, monkeypatch):
    monkeypatch.setenv("STOCKPOT_HOME", str(tmp_path))
    found = ask("pull", "smolm2")
    assert found.exit_code == 1
    assert "smollm2, minilm" in found.stderr
