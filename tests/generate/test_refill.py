"""An encoder-decoder fills gaps: sentinels in, spans out."""

from __future__ import annotations

import math

import pytest

from stockpot.errors import GenerationError
from stockpot.generate.engine import Engine
from stockpot.generate.refill import refill
from stockpot.generate.request import Completion
from stockpot.text.tokenizer import SPECIAL_TOKENS, Tokenizer


@pytest.fixture(scope="module")
def filler(make_bundle):
    """Make an encoder-decoder whose tokenizer has three sentinels."""
    marks = [f"<|extra_{number}|>" for number in range(3)]
    texts = ["the cat sat on the mat and the dog ran far away"] * 9
    bundle = make_bundle("encoder_decoder")
    tokenizer = Tokenizer.train(texts, vocab_size=300, special_tokens=[*SPECIAL_TOKENS, *marks])
    bundle.tokenizer = tokenizer
    return bundle


def answer(bundle, *parts):
    """Write what a model would: sentinels by number, texts as their ids, each with log-probability -1."""
    marks = bundle.tokenizer.sentinel_ids
    ids = [
        one
        for part in parts
        for one in ([marks[part]] if isinstance(part, int) else bundle.tokenizer.encode(part))
    ]
    return Completion("", tuple(ids), "stop", 1, tuple(-1.0 for _ in ids))


def test_the_source_is_that_of_span_corruption(filler):
    tokenizer, seen = filler.tokenizer, []

    def write(ids, sampling):
        seen.append((ids, sampling.temperature))
        return answer(filler, 0, " cat", 1, " mat", 2)

    refill(filler, "the <|mask|> sat on the <|mask|>.", write)
    first, second = tokenizer.sentinel_ids[:2]
    expected = [
        *tokenizer.encode("the"),
        first,
        *tokenizer.encode(" sat on the"),
        second,
        *tokenizer.encode("."),
        tokenizer.eos_id,
    ]
    assert seen == [(expected, 0.0)]


def test_each_gap_gets_its_span_and_the_whole_text(filler):
    gaps = refill(
        filler, "the <|mask|> sat on the <|mask|>.", lambda *_: answer(filler, 0, " cat", 1, " mat", 2)
    )
    assert [[one.token for one in gap] for gap in gaps] == [[" cat"], [" mat"]]
    assert gaps[0][0].text == "the cat sat on the mat."
    tokens = len(filler.tokenizer.encode(" cat"))
    assert gaps[0][0].probability == pytest.approx(math.exp(-tokens))


def test_a_gap_the_model_passes_over_is_shown_as_empty(filler):
    gaps = refill(filler, "the <|mask|> sat <|mask|> down", lambda *_: answer(filler, 1, " far"))
    assert (gaps[0][0].token, gaps[0][0].probability) == ("", 0.0)
    assert gaps[1][0].token == " far"


def test_the_engine_fills_with_an_encoder_decoder(filler):
    gaps = Engine(filler).fill("the <|mask|> sat on the <|mask|>.")
    assert [len(gap) for gap in gaps] == [1, 1]
    assert all(0 <= gap[0].probability <= 1 for gap in gaps)


@pytest.mark.parametrize(
    ("text", "said"), [("no gap at all", "no gap"), ("<|mask|> " * 4, "4 gaps; .* 3 sentinels")]
)
def test_what_cannot_be_filled_is_refused(filler, text, said):
    with pytest.raises(GenerationError, match=said):
        Engine(filler).fill(text)


def test_a_tokenizer_without_sentinels_is_told(seq2seq):
    with pytest.raises(GenerationError, match="no sentinels"):
        Engine(seq2seq).fill("the <|mask|>")
