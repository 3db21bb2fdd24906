"""Tiny bundles of each shape, with weights large enough that answers differ."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch

from stockpot.bundle import Bundle
from stockpot.generate.engine import Engine
from stockpot.model import config
from stockpot.model.transformer import Transformer
from stockpot.text.chat import ChatTemplate
from stockpot.text.tokenizer import Tokenizer

TEXTS = [
    "the cat sat on the mat and the dog ran far away",
    "one two three four five six seven",
    "héllo wörld, naïve café 😀😀 日本語",
    "User: who is there?\nAssistant: nobody.\n",
] * 20
SIZES = {"layers": 2, "dim": 32, "heads": 4, "kv_heads": 2, "context": 96, "zero_init": False}


def build(tokenizer, shape="decoder", **choices):
    torch.manual_seed(0)
    make = getattr(config, shape)
    model = Transformer(make(vocab_size=tokenizer.vocab_size, **{**SIZES, **choices})).eval()
    with torch.no_grad():
        for param in model.parameters():
            if param.ndim > 1:
                param.normal_(std=0.3)
            elif param.ndim == 1:
                param.fill_(1.0)
        # Tied weights make a model repeat itself; one pass over random hidden states should end somewhere else.
        model.embed.weight.normal_(std=0.7)
    return Bundle(model, tokenizer, ChatTemplate.of(tokenizer))


@pytest.fixture(scope="session")
def tokenizer():
    return Tokenizer.train(TEXTS, vocab_size=360)


@pytest.fixture(scope="session")
def make_bundle(tokenizer):
    return lambda shape="decoder", **choices: build(tokenizer, shape, **choices)


@pytest.fixture(scope="session")
def bundle(make_bundle):
    return make_bundle()


@pytest.fixture(scope="session")
def encoder(make_bundle):
    return make_bundle("encoder")


@pytest.fixture(scope="session")
def seq2seq(make_bundle):
    return make_bundle("encoder_decoder")


@pytest.fixture
def engine(bundle):
    return Engine(bundle, slots=4)


@pytest.fixture
def count_calls():
    """Give what collects how many ids each call of a model is given, padding included."""

    @contextmanager
    def counting(model):
        calls: list[int] = []
        hook = model.register_forward_pre_hook(lambda _, given: calls.append(given[0].numel()))
        try:
            yield calls
        finally:
            hook.remove()

    return counting
