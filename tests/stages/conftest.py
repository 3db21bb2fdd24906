"""A tiny model in a folder, a small corpus with its tokenizer, and how to interrupt a run."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
import torch

from stockpot.bundle import Bundle
from stockpot.model.config import decoder
from stockpot.model.transformer import Transformer
from stockpot.text.chat import ChatTemplate
from stockpot.text.tokenizer import SPECIAL_TOKENS, Tokenizer
from stockpot.train.guard import Interrupted
from stockpot.village import Village
from stockpot.weights.store import save


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory):
    """Save a decoder of two layers that has learned nothing, with a tokenizer of 400 entries."""
    tokenizer = Tokenizer.train([one["text"] for one in Village().documents(limit=200)], vocab_size=400)
    torch.manual_seed(0)
    model = Transformer(decoder(layers=2, dim=32, heads=2, context=128, vocab_size=400, zero_init=False))
    bundle = Bundle(model, tokenizer, ChatTemplate.of(tokenizer))
    return save(tmp_path_factory.mktemp("base") / "model", bundle)


@pytest.fixture(scope="session")
def texts() -> list[str]:
    return [record["text"] for record in Village(seed=3).documents(limit=120)]


@pytest.fixture(scope="session")
def pantry(tmp_path_factory, texts) -> Path:
    """Fill a folder with ``corpus.jsonl``, ``chats.jsonl`` and the tokenizer ``tok``; nobody writes into it."""
    folder = tmp_path_factory.mktemp("pantry")
    lines = "\n".join(json.dumps({"text": text}) for text in texts)
    (folder / "corpus.jsonl").write_text(lines, encoding="utf-8")
    chats = "\n".join(json.dumps(record) for record in Village(seed=3).chats("train", limit=80))
    (folder / "chats.jsonl").write_text(chats, encoding="utf-8")
    marks = [f"<|extra_{number}|>" for number in range(20)]
    Tokenizer.train(texts, vocab_size=400, special_tokens=[*SPECIAL_TOKENS, *marks]).save(folder / "tok")
    return folder


@pytest.fixture
def write_lines(tmp_path):
    """Write records as JSON lines; returns the path as text."""

    def write(name, records):
        path = tmp_path / name
        path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
        return str(path)

    return write


@pytest.fixture
def interrupted_at():
    """Run a stage and press Ctrl-C when it has logged a step; it must stop as interrupted."""

    def run(step, stage):
        def press(event):
            if event["kind"] == "step" and event["step"] == step:
                signal.raise_signal(signal.SIGINT)

        with pytest.raises(Interrupted):
            stage(press)

    return run
