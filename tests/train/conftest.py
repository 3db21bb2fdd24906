from __future__ import annotations

from functools import partial

import pytest
import torch

from stockpot.data.batch import Batch
from stockpot.model.config import decoder
from stockpot.model.transformer import Transformer
from stockpot.train.losses import next_token_loss


class Stream:
    """An endless, seeded stream of batches that tells and takes its place, as a loader does."""

    def __init__(self, rows=4, width=16, vocab_size=40):
        self.rows, self.width, self.vocab_size = rows, width, vocab_size
        self.place = 0

    def __iter__(self):
        return self

    def __next__(self):
        generator = torch.Generator().manual_seed(self.place)
        self.place += 1
        start = torch.randint(0, self.vocab_size, (self.rows, 1), generator=generator)
        ids = (start + 3 * torch.arange(self.width + 1)) % self.vocab_size  # each token tells the next
        return Batch(ids[:, :-1].contiguous(), ids[:, 1:].contiguous())

    def state_dict(self):
        return {"place": self.place}

    def load_state_dict(self, state):
        self.place = state["place"]


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
