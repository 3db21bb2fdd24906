"""Small things that the tests of this room share."""

from __future__ import annotations

import random

import pytest

from stockpot.data.encode import encode
from stockpot.data.records import TextRecord
from stockpot.text import DEFAULT_TEMPLATE, SPECIAL_TOKENS, Tokenizer

WORDS = ["soup", "pot", "stir", "salt", "pepper", "onion", "spoon", "the", "a", "warm", "cook", "and", "now"]


def make_text(seed: int, sentences: int) -> str:
    """Write plain sentences; the same seed writes the same ones."""
    rng = random.Random(seed)
    lines = (" ".join(rng.choices(WORDS, k=rng.randint(3, 12))).capitalize() + "." for _ in range(sentences))
    return " ".join(lines)


@pytest.fixture(scope="session")
def tokenizer():
    """Train a byte-level tokenizer of 360 entries and twenty sentinels."""
    special = (*SPECIAL_TOKENS, *(f"<|extra_{i}|>" for i in range(20)))
    return Tokenizer.train([make_text(i, 20) for i in range(20)], vocab_size=360, special_tokens=special)


@pytest.fixture(scope="session")
def template():
    return DEFAULT_TEMPLATE


@pytest.fixture(scope="session")
def store(tokenizer):
    """Sixty documents of 1 to 40 sentences."""
    return encode([TextRecord(make_text(i, 1 + i * 7 % 40)) for i in range(60)], tokenizer)
