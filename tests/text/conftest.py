"""Corpora and tokenizers of the text tests: code, not downloads."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from stockpot.text import KINDS, SPECIAL_TOKENS, Tokenizer

_SENTENCES = (
    "The cat sat on the mat, and the dog didn't mind.",
    "Attention is all you need: the intention of mentioning a transformation.",
    "In 1984, 23 - 20 = 3 and 3 + 6 = 9; isn't it?",
    "Größe, naïve café, Ελλάδα, Москва, 東京タワー, 안녕하세요, हिन्दी, 🙂👩‍👩‍👧‍👦!",
    "def f(x):\n    return x ** 2  # twice\n\n\n\tindented\r\nwindows\r\n",
    "She said: \"I'll go — we've won!\"  Then…   silence.\n\nNew paragraph.",
)
_HARD = (
    " ", "  ", "   ", "\n", "\n\n", "\r\n", "\t", "\v", "\x1c", "\x85", "\xa0", "\u2028", "\u3000", "\u200b", "\ufeff",
    "'s", "'LL", "'ſ", "ß", "é", "e\u0301", "ｱ", "٣", "½", "Ⅷ", "𝔘", "🙂", "\u0378", "\U000e0001", "\x00", "\x01", "'", '"',
    ".", "...", "!", "-", "_", "a", "Z", "word", "Word", "7", "42", "Ж", "中", "中文", "▁", "##", "\ue000", "\ufffd",
)  # fmt: skip


@pytest.fixture(scope="session")
def corpus() -> list[str]:
    choose = random.Random(7)
    return [" ".join(choose.choices(_SENTENCES, k=4)) for _ in range(60)]


@pytest.fixture(scope="session")
def tokenizers(corpus: list[str]) -> dict[str, Tokenizer]:
    return {kind: Tokenizer.train(corpus, kind=kind, vocab_size=700) for kind in KINDS}


@pytest.fixture(scope="session")
def mutants() -> Callable[[int, int], list[str]]:
    """Texts made to break word splitting: ``mutants(seed, count)``."""

    def make(seed: int, count: int) -> list[str]:
        choose = random.Random(seed)
        parts = (*_HARD, *SPECIAL_TOKENS, *_SENTENCES)
        return [_mutant(choose, parts) for _ in range(count)]

    return make


def _mutant(choose: random.Random, parts: tuple[str, ...]) -> str:
    text = "".join(choose.choices(parts, k=choose.randrange(24)))
    letters = list(text)
    for _ in range(choose.randrange(4)):
        letters.insert(choose.randrange(len(letters) + 1), _any_character(choose))
    return "".join(letters)


def _any_character(choose: random.Random) -> str:
    while True:
        number = choose.choice((choose.randrange(0x80), choose.randrange(0x3100), choose.randrange(0x110000)))
        if not 0xD800 <= number < 0xE000:
            return chr(number)
