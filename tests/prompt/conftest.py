"""Tiny models to be asked, and where the shared data is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from stockpot.bundle import Bundle
from stockpot.model import config
from stockpot.model.transformer import Transformer
from stockpot.text.chat import ChatTemplate
from stockpot.text.tokenizer import Tokenizer

TEXTS = ["John ate pasta for dinner. yes no maybe Positive Negative Neutral true false 1 2 3\n"] * 20
EVAL = Path(__file__).parents[3] / "shared" / "data" / "eval"


@pytest.fixture(scope="session")
def make_bundle():
    tokenizer = Tokenizer.train(TEXTS, vocab_size=340)

    def make(shape="decoder", *, chat=False, context=256, seed=0):
        torch.manual_seed(seed)
        sizes = {"layers": 2, "dim": 32, "heads": 2, "context": context, "zero_init": False}
        model = Transformer(getattr(config, shape)(vocab_size=tokenizer.vocab_size, **sizes)).eval()
        return Bundle(model, tokenizer, ChatTemplate.of(tokenizer) if chat else None)

    return make


@pytest.fixture(scope="session")
def shared_eval():
    if not EVAL.is_dir():
        pytest.skip("the shared evaluation data is not here")
    return EVAL
