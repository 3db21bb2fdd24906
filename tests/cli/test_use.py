"""generate, fill and chat put questions to the engine and print what it answers."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time

import pytest
import torch
from typer.testing import CliRunner

import stockpot as sp
from stockpot.cli import show, use
from stockpot.cli.main import app
from stockpot.model.transformer import Transformer
from stockpot.text.chat import ChatTemplate


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Save a tiny chat model, a base model and an encoder with random weights."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    tokenizer = sp.Tokenizer.train(
        ["the cat sat on the mat", "Name a pet."] * 3, kind="byte-bpe", vocab_size=300
    )
    sizes = {"layers": 1, "dim": 32, "heads": 2, "vocab_size": tokenizer.vocab_size}
    writer = Transformer(sp.decoder(context=4096, **sizes))
    sp.save(folder / "chat", sp.Bundle(writer, tokenizer, ChatTemplate.of(tokenizer), {"temperature": 0.0}))
    sp.save(folder / "base", sp.Bundle(Transformer(sp.decoder(context=64, **sizes)), tokenizer))
    sp.save(
        folder / "small",
        sp.Bundle(Transformer(sp.decoder(context=64, **sizes)), tokenizer, ChatTemplate.of(tokenizer)),
    )
    sp.save(folder / "encoder", sp.Bundle(Transformer(sp.encoder(context=64, **sizes)), tokenizer))
    return folder


def ask(*words: object, typed: str | bytes | None = None):
    return CliRunner().invoke(app, [str(word) for word in words], input=typed, env={"COLUMNS": "200"})


# --- generate ---


def test_generate_prints_the_continuation_and_nothing_else(models):
    found = ask("generate", models / "chat", "the cat", "--max-tokens", 8)
    (expected,) = sp.Engine(sp.load(models / "chat")).generate(
        ["the cat"], sp.Sampling(max_tokens=8, temperature=0)
    )
    assert (found.exit_code, found.stderr) == (0, "")
    assert found.stdout == expected.text + "\n", "the model's own default, temperature 0, applies"


def test_a_seed_repeats_and_flags_beat_the_models_defaults(models):
    words = ("generate", models / "chat", "the", "--max-tokens", 12, "--temperature", 1, "--top-k", 50)
    first, again, other = (ask(*words, "--seed", seed).stdout for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_the_prompt_can_come_from_stdin(models):
    words = ("generate", models / "chat", "--max-tokens", 6)
    named = ask(*words, "the cat").stdout
    assert ask(*words, "-", typed="the cat\n").stdout == named
    assert ask(*words, typed="the cat\n").stdout == named


def test_stdin_that_is_not_text_is_a_known_error(models):
    found = ask("generate", models / "chat", "-", typed=b"\xff\xfe")
    assert found.exit_code == 1
    assert "not UTF-8" in found.stderr


def test_generate_says_where_to_ask_when_the_model_ends_at_once(models, monkeypatch):
    from stockpot.generate.engine import Engine

    monkeypatch.setattr(Engine, "stream", lambda *_: iter(()))
    found = ask("generate", models / "chat", "the cat")
    assert (found.exit_code, found.stdout) == (0, "\n")
    assert f"stockpot chat {models / 'chat'}" in found.stderr


def test_generate_json_holds_every_completion(models):
    words = ("generate", models / "chat", "the", "--n", 3, "--temperature", 1, "--seed", 0, "--max-tokens", 4)
    value = json.loads(ask(*words, "--json").stdout)
    assert value["prompt"] == "the"
    assert [set(one) >= {"text", "ids", "finish_reason"} for one in value["completions"]] == [True] * 3
    assert ask(*words).stdout.startswith("[1] ")


def test_any_sampling_setting_can_be_set(models):
    value = json.loads(
        ask("generate", models / "chat", "the", "--set", "beams=2", "--max-tokens", 3, "--json").stdout
    )
    assert "beam_score" in value["completions"][0]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--temperature", "-1"), "--temperature: temperature is -1.0; expected greater than or equal to 0"),
        (("--set", "tempreature=1"), "Did you mean 'temperature'?"),
        (("--stop", ""), "an empty stop text"),
    ],
)
def test_wrong_sampling_settings_are_refused_before_the_model_is_loaded(words, said):
    found = ask("generate", "no/such/model", "x", *words)
    assert found.exit_code == 1
    assert said in found.stderr


def test_a_model_that_is_not_there_is_a_known_error(tmp_path):
    found = ask("generate", tmp_path / "nothing", "x")
    assert found.exit_code == 1
    assert found.stderr.startswith("error: ")


def test_control_characters_of_a_model_do_nothing_on_a_terminal(capsys, monkeypatch):
    show.stream("a\x1b[2Jb\n")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    show.stream("a\x1b[2J\x9bb\tc\n")
    assert capsys.readouterr().out == "a\x1b[2Jb\na\ufffd[2J\ufffdb\tc\n"


# --- generate with a schema ---


def test_generate_follows_a_schema(models, tmp_path):
    pytest.importorskip("llguidance")
    file = tmp_path / "pet.json"
    file.write_text('{"enum": ["cat", "dog"]}', encoding="utf-8")
    found = ask("generate", models / "chat", "the cat", "--schema", file)
    assert (found.exit_code, found.stderr) == (0, "")
    assert json.loads(found.stdout) in ("cat", "dog")


def test_generate_writes_any_object(models):
    pytest.importorskip("llguidance")
    found = ask("generate", models / "chat", "the cat", "--format", "json", "--max-tokens", 4)
    assert found.exit_code in (0, 1)
    assert found.stdout.startswith("{")
    if found.exit_code:
        assert "cut before its end" in found.stderr
    else:
        assert isinstance(json.loads(found.stdout), dict)


@pytest.mark.parametrize(
    ("text", "said"),
    [("[]", "is an object"), ("{", "not JSON"), (None, "cannot be read"), ('{"type": 3}', "schema")],
)
def test_a_bad_schema_is_told(models, tmp_path, text, said):
    pytest.importorskip("llguidance")
    file = tmp_path / "schema.json"
    if text is not None:
        file.write_text(text, encoding="utf-8")
    found = ask("generate", models / "chat", "the cat", "--schema", file)
    assert found.exit_code == 1
    assert said in found.stderr


# --- fill ---


def test_fill_lists_the_likeliest_tokens_of_each_gap(models):
    value = json.loads(ask("fill", models / "encoder", "the ___ sat on ___", "--top", 2, "--json").stdout)
    assert [len(gap) for gap in value["gaps"]] == [2, 2]
    assert value["gaps"][0][0]["probability"] >= value["gaps"][0][1]["probability"]
    assert len(ask("fill", models / "encoder", "the ___ sat").stdout.splitlines()) >= 7


def test_fill_needs_an_encoder_and_a_gap(models):
    assert ask("fill", models / "encoder", "no gap").exit_code == 1
    assert ask("fill", models / "base", "the ___").exit_code == 1


# --- chat ---


def test_piped_lines_are_answered_and_commands_obeyed(models, tmp_path):
    saved = tmp_path / "chat.jsonl"
    lines = f"hello\n\n/save {saved}\n/reset\nagain\n/save {saved}\n/quit\nnever\n"
    found = ask("chat", models / "chat", "--max-tokens", 5, "--system", "Be short.", typed=lines)
    assert found.exit_code == 0, found.stderr
    first, second = (json.loads(line)["messages"] for line in saved.read_text().splitlines())
    assert [one["role"] for one in first] == ["system", "user", "assistant"]
    assert [one["content"] for one in second][:2] == ["Be short.", "again"]
    assert found.stdout == first[2]["content"] + "\n" + second[2]["content"] + "\n"


def test_a_command_that_does_not_exist_is_told_and_not_asked_of_the_model(models):
    found = ask("chat", models / "chat", "--max-tokens", 3, typed="/rest\n/exit\n")
    assert (found.exit_code, found.stdout) == (0, "")
    assert "There is no /rest here" in found.stderr and "/quit leaves" in found.stderr
    assert ask("chat", models / "chat", "--max-tokens", 3, typed="/etc/hosts is what?\n").stdout


def test_chat_saves_what_was_said_when_it_ends(models, tmp_path):
    ask("chat", models / "chat", "--max-tokens", 3, "--save", tmp_path / "x.jsonl", typed="hello\n")
    assert json.loads((tmp_path / "x.jsonl").read_text())["messages"][0] == {
        "role": "user",
        "content": "hello",
    }


def test_a_conversation_that_cannot_be_saved_is_not_lost(models, tmp_path):
    lines = f"hello\n/save {tmp_path}/none/x.jsonl\n/save {tmp_path}/x.jsonl\n"
    found = ask("chat", models / "chat", "--max-tokens", 3, typed=lines)
    assert found.exit_code == 0
    assert "none/x.jsonl: No such file" in found.stderr
    assert (tmp_path / "x.jsonl").exists()
    for place in (tmp_path, tmp_path / "none" / "x.jsonl"):
        assert "cannot be saved there" in ask("chat", models / "chat", "--save", place, typed="").stderr


def test_a_piped_line_that_is_not_text_is_a_known_error(models):
    found = ask("chat", models / "chat", "--max-tokens", 3, typed=b"hello\n\xff\n")
    assert found.exit_code == 1
    assert "not UTF-8" in found.stderr


def test_embed_gives_a_vector_a_line(models):
    typed = "the cat\u2028sat\x0con\r\n\nthe mat\n"
    value = json.loads(ask("embed", models / "encoder", "--json", typed=typed).stdout)
    assert [one["text"] for one in value["vectors"]] == ["the cat\u2028sat\x0con", "", "the mat"]


def test_chat_json_is_one_line_an_answer(models):
    found = ask("chat", models / "chat", "--max-tokens", 3, "--json", typed="hello\nyou\n")
    answers = [json.loads(line) for line in found.stdout.splitlines()]
    assert [one["role"] for one in answers] == ["assistant", "assistant"]
    assert answers[0]["tokens"] <= 3


def test_a_long_chat_forgets_its_oldest_turns_and_goes_on(models):
    found = ask("chat", models / "small", "--max-tokens", 6, typed="the cat sat on the mat\n" * 6)
    assert found.exit_code == 0
    assert "is forgotten" in found.stderr
    assert "error" not in found.stderr


def test_a_message_longer_than_the_context_is_told_and_the_chat_goes_on(models):
    found = ask("chat", models / "small", "--max-tokens", 4, "--json", typed="x" * 500 + "\nhi\n")
    assert "error: " in found.stderr
    assert len(found.stdout.splitlines()) == 1


def test_a_model_without_a_template_cannot_chat(models):
    found = ask("chat", models / "base", typed="hi\n")
    assert found.exit_code == 1
    assert "no chat template" in found.stderr
    assert f"stockpot generate {models / 'base'}" in found.stderr


class Terminal:
    """A program with a terminal of its own."""

    def __init__(self, *words: object):
        self.ours, theirs = pty.openpty()
        command = [sys.executable, "-m", "stockpot", *map(str, words)]
        self.process = subprocess.Popen(
            command,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=os.environ | {"TERM": "xterm"},
            start_new_session=True,
        )
        os.close(theirs)
        self.seen = ""

    def type(self, text: str) -> None:
        os.write(self.ours, text.encode())

    def press_ctrl_c(self) -> None:
        """Signal the program and its children, as a terminal does."""
        os.killpg(self.process.pid, signal.SIGINT)

    def wait_for(self, text: str, timeout_s: float = 60) -> None:
        end = time.monotonic() + timeout_s
        while text not in self.seen:
            assert time.monotonic() < end, f"{text!r} was not seen in {self.seen!r}"
            if select.select([self.ours], [], [], 0.2)[0]:
                self.seen += os.read(self.ours, 4096).decode(errors="replace")
        self.seen = self.seen.partition(text)[2]


def test_ctrl_c_stops_the_answer_and_not_the_program(models):
    endless = ("--max-tokens", 4000, "--set", "min_tokens=4000")
    terminal = Terminal("chat", models / "chat", *endless)
    try:
        terminal.wait_for("> ")
        time.sleep(0.3)  # the line editor shows its prompt a moment before it listens
        terminal.press_ctrl_c()
        terminal.wait_for("/quit or Ctrl-D leaves")
        for said in ("hello", "once more"):
            terminal.type(f"{said}\n")
            terminal.wait_for(said)
            time.sleep(0.4)
            terminal.press_ctrl_c()
            terminal.wait_for("(stopped)")
            terminal.wait_for("> ")
        terminal.type("/quit\n")
        assert terminal.process.wait(timeout=20) == 0
    finally:
        terminal.process.kill()
        terminal.process.wait()
        os.close(terminal.ours)


def test_a_reward_model_is_no_partner_but_can_be_looked_into(models, tmp_path):
    sizes = {"layers": 1, "dim": 32, "heads": 2, "context": 64}
    chat = sp.load(models / "chat")
    judge = Transformer(
        sp.decoder(vocab_size=chat.tokenizer.vocab_size, value_head=True, predicts=False, **sizes)
    )
    sp.save(tmp_path / "judge", sp.Bundle(judge, chat.tokenizer, chat.template))
    found = ask("chat", tmp_path / "judge", typed="hello\n")
    assert found.exit_code == 1
    assert "judge is a reward model: it rates answers; it cannot write." in found.stderr
    looked = ask("inspect", tmp_path / "judge", "--text", "the cat", "--out", tmp_path / "look.html")
    assert looked.exit_code == 0, looked.stderr
    assert '"probability": null' in (tmp_path / "look.html").read_text(encoding="utf-8")


# --- embed ---


def test_embed_prints_a_line_of_numbers_a_text(models):
    expected = sp.Engine(sp.load(models / "encoder")).embed(["the cat", "a mat"])
    found = ask("embed", models / "encoder", "the cat", "a mat")
    assert found.exit_code == 0, found.stderr
    numbers = torch.tensor([[float(one) for one in line.split()] for line in found.stdout.splitlines()])
    torch.testing.assert_close(numbers, expected, atol=1e-5, rtol=1e-5)  # six digits are printed
    piped = json.loads(ask("embed", models / "encoder", "-", "--json", typed="the cat\na mat\n").stdout)
    assert [one["text"] for one in piped["vectors"]] == ["the cat", "a mat"]
    torch.testing.assert_close(torch.tensor([one["vector"] for one in piped["vectors"]]), expected)


def test_embed_knows_its_poolings(models):
    cls = ask("embed", models / "encoder", "the cat", "--pool", "cls")
    assert cls.exit_code == 0
    assert cls.stdout != ask("embed", models / "encoder", "the cat").stdout
    assert ask("embed", models / "encoder", "the cat", "--pool", "max").exit_code == 2


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        ({}, "int4"),
        ({"quantize": "int8"}, "int8"),
        ({"quantize": "none"}, None),
        ({"dtype": "float32"}, None),
    ],
)
def test_a_packed_model_stays_packed_on_a_cpu(given, kind):
    assert use.kind_of_weights("smollm2", given.get("quantize"), use.Drawing(device="cpu", **given)) == kind
    assert use.kind_of_weights("minilm", None, use.Drawing(device="cpu")) is None
    assert use.kind_of_weights("runs/base", None, use.Drawing(device="cpu")) is None
