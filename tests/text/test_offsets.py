"""Ids with the characters they stand for."""

from __future__ import annotations

import pytest

from stockpot.text.tokenizer import SPECIAL_TOKENS, Tokenizer

TEXTS = ["The cat sat on the mat.", "déjà vu", "a  b\n", "x<|end|>y", "日本 🍲"]


@pytest.mark.parametrize("kind", ["byte-bpe", "bpe", "wordpiece", "unigram", "char"])
def test_ids_are_those_of_encode_and_offsets_cover_the_words(kind):
    tokenizer = Tokenizer.train(TEXTS * 5, kind=kind, vocab_size=350)
    for text in TEXTS:
        ids, offsets = tokenizer.encode_with_offsets(text)
        assert ids == tokenizer.encode(text) and len(ids) == len(offsets)
        covered = {place for start, end in offsets for place in range(start, end)}
        assert {place for place, sign in enumerate(text) if not sign.isspace()} <= covered


def test_a_spelling_of_a_special_token_is_cut_where_encode_cuts_it():
    source = Tokenizer.train(TEXTS * 5, vocab_size=350, special_tokens=SPECIAL_TOKENS)
    text = "say <|end|> now"
    ids, offsets = source.encode_with_offsets(text)
    assert ids == source.encode(text)
    assert "".join(text[a:b] for a, b in offsets) == text
