"""Tiny models to be judged: of each shape, with answers that differ."""

from __future__ import annotations

import pytest
import torch

from stockpot.bundle import Bundle
from stockpot.model import config
from stockpot.model.transformer import Transformer
from stockpot.text.chat import ChatTemplate
from stockpot.text.tokenizer import Tokenizer

TEXTS = ["Question: What is it?\nAnswer: yes no maybe blue red green 1 2 3 <script>\n"] * 20


@pytest.fixture(scope="session")
def make_bundle():
    tokenizer = Tokenizer.train(TEXTS, vocab_size=330)

    def make(shape="decoder", *, chat=False, seed=0, context=96):
        torch.manual_seed(seed)
        sizes = {"layers": 2, "dim": 32, "heads": 2, "context": context, "zero_init": False}
        model = Transformer(getattr(config, shape)(vocab_size=tokenizer.vocab_size, **sizes)).eval()
        return Bundle(model, tokenizer, ChatTemplate.of(tokenizer) if chat else None)

    return make
