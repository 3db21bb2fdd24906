"""`stockpot serve` as a process, and what it refuses before it starts."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from http.client import HTTPConnection

import pytest
from typer.testing import CliRunner

import stockpot as sp
from stockpot.cli.main import app
from stockpot.cli.serving import _named


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    where = tmp_path_factory.mktemp("served") / "chat"
    tokenizer = sp.Tokenizer.train(["the cat sat on the mat"] * 20, vocab_size=300)
    model = sp.Transformer(sp.decoder(layers=1, dim=32, heads=2, context=64, vocab_size=tokenizer.vocab_size))
    sp.save(where, sp.Bundle(model, tokenizer, sp.ChatTemplate.of(tokenizer)))
    return where


def test_an_open_address_without_a_token_is_wrong_usage(folder):
    found = CliRunner().invoke(app, ["serve", str(folder), "--host", "0.0.0.0"])
    assert found.exit_code == 2
    assert "--token new" in found.output


@pytest.mark.parametrize("held", ["", " \n", "\ufeff\n"])
def test_a_file_without_a_token_is_refused(folder, tmp_path, held):
    (tmp_path / "token").write_text(held, encoding="utf-8")
    found = CliRunner().invoke(app, ["serve", str(folder), "--token", str(tmp_path / "token")])
    assert (found.exit_code, found.stderr.split("\n")[0]) == (1, f"error: {tmp_path}/token: holds no token.")


@pytest.mark.parametrize(
    ("given", "name", "ref", "adapters"),
    [
        ("smollm2", "smollm2", "smollm2", []),
        ("runs/chat", "chat", "runs/chat", []),
        ("pot=runs/chat", "pot", "runs/chat", []),
        ("poet=smollm2+runs/lora+runs/soft", "poet", "smollm2", ["runs/lora", "runs/soft"]),
        ("smollm2+runs/lora", "lora", "smollm2", ["runs/lora"]),
    ],
)
def test_models_are_named(given, name, ref, adapters):
    assert _named(given) == (name, (ref, adapters))


def test_two_models_of_one_name_are_refused(folder):
    found = CliRunner().invoke(app, ["serve", str(folder), str(folder)])
    assert found.exit_code == 1


def test_a_port_that_is_taken_is_told_in_two_lines(folder):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        found = CliRunner().invoke(app, ["serve", str(folder), "--port", str(port)])
    assert found.exit_code == 1
    first, second = found.stderr.splitlines()
    assert first == f"error: 127.0.0.1:{port} cannot be listened on (Address already in use)."
    assert "--port" in second


def test_a_server_starts_asks_for_its_token_and_ends_when_told(folder):
    command = [sys.executable, "-m", "stockpot", "serve", f"pot={folder}", "--host", "0.0.0.0", "--port", "0"]
    process = subprocess.Popen(
        [*command, "--token", "new", "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None and process.stderr is not None
        shown = json.JSONDecoder().raw_decode(_document(process.stdout))[0]
        assert shown["models"] == ["pot"]
        token = process.stderr.readline().removeprefix("token (shown once): ").strip()
        assert process.stderr.readline().startswith("warning: other machines can reach this server")
        port = int(shown["address"].rpartition(":")[2])
        for given, status in ((None, 401), (f"Bearer {token}", 200)):
            link = HTTPConnection("127.0.0.1", port, timeout=30)
            link.request("GET", "/v1/models", headers={"Authorization": given} if given else {})
            assert link.getresponse().status == status
            link.close()
        process.send_signal(signal.SIGTERM)
        rest, errors = process.communicate(timeout=60)
        assert process.returncode == 0
        assert rest + errors == ""
    finally:
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            process.communicate()


def _document(stream):
    text = ""
    while not text.rstrip().endswith("}"):
        line = stream.readline()
        assert line
        text += line
    return text
