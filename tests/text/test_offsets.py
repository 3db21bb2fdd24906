"""Ids with the characters they stand for."""

from __future__ import annotations

import pytest
from tokenizers import AddedToken, models, normalizers
from tokenizers import Tokenizer as Engine

from stockpot.errors import TokenizerError
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


def test_a_spelling_that_normalising_puts_together_is_refused_as_encode_refuses_it(tmp_path):
    signs = ["<end>", "s", "a", "y", " ", "<", ">", "e", "n", "d", "<e", "<en", "<end"]
    merges = [("<", "e"), ("<e", "n"), ("<en", "d"), ("<end", ">")]
    engine = Engine(models.BPE({sign: number for number, sign in enumerate(signs)}, merges))
    engine.normalizer = normalizers.NFKC()
    engine.add_special_tokens([AddedToken("<end>", normalized=False, special=True)])
    engine.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.encode_with_offsets("say <end>")[0] == tokenizer.encode("say <end>")
    for way in (tokenizer.encode, tokenizer.encode_with_offsets):
        with pytest.raises(TokenizerError, match="turns ordinary text into a special token"):
            way("say \uff1cend\uff1e")
