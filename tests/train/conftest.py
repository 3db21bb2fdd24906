from __future__ import annotations

from functools import partial

import pytest
import torch
from training import Stream

from stockpot.model.config import decoder
from stockpot.model.transformer import Transformer
from stockpot.train.losses import next_token_loss


@pytest.fixture
def stream():
    return Stream


@pytest.fixture
def tiny_model():
    def make(**choices):
        torch.manual_seed(0)
        return Transformer(decoder(layers=2, dim=32, heads=2, context=16, vocab_size=40, **choices))

    return make


@pytest.fixture
def tiny_loss():
    return partial(next_token_loss, byte_lengths=torch.full((40,), 2))
