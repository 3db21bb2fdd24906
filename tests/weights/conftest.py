"""Tiny models of each shape and a saved folder to damage."""

from __future__ import annotations

import pytest
import torch

from stockpot.bundle import Bundle
from stockpot.model import config
from stockpot.model.transformer import Transformer
from stockpot.text.chat import ChatTemplate
from stockpot.text.tokenizer import Tokenizer
from stockpot.weights.store import save

SIZES = {"layers": 2, "dim": 32, "heads": 4, "kv_heads": 2, "context": 64, "vocab_size": 340}


def lively(model):
    """Give every weight a value of its own: zeros and ones would hide mix-ups."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for param in model.parameters():
            noise = torch.randn(param.shape, generator=generator)
            param.copy_(noise * 0.2 if param.ndim > 1 else 1 + 0.2 * noise)
    return model.eval()


@pytest.fixture(scope="session")
def make_model():
    def make(shape="decoder", **choices):
        return lively(Transformer(getattr(config, shape)(**{**SIZES, **choices})))

    return make


@pytest.fixture(scope="session")
def tokenizer():
    texts = ["the cat sat on the mat and the dog ran far away", "one two three four five"] * 10
    return Tokenizer.train(texts, vocab_size=340)


@pytest.fixture(scope="session")
def bundle(make_model, tokenizer):
    return Bundle(make_model(), tokenizer, ChatTemplate.of(tokenizer), {"temperature": 0.7})


@pytest.fixture
def folder(bundle, tmp_path):
    return save(tmp_path / "model", bundle)
