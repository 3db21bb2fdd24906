"""Vectors of texts: the same through our kernels as in padded batches, and made anew when weights change."""

from __future__ import annotations

import pytest
import torch

from stockpot.bundle import Bundle, Embedding
from stockpot.generate import vectors
from stockpot.generate.engine import Engine
from stockpot.model.config import encoder
from stockpot.model.native_encoder import NativeEncoder
from stockpot.model.quantized import quantize
from stockpot.model.transformer import Transformer
from stockpot.native.texts import text_kernels

TEXTS = ["the cat", "", "a", "the cat sat on the mat " * 30, "on the mat", "the dog, the cat and the mat"]
KERNELS = text_kernels()
NO_KERNELS = pytest.mark.skipif(
    KERNELS is None or not KERNELS.is_fast, reason="no kernels here, or none that are fast on this processor"
)


@pytest.fixture
def sentences(tokenizer):
    torch.manual_seed(0)
    shape = {**vectors.SMALL, "vocab_size": tokenizer.vocab_size}
    return Bundle(Transformer(encoder(**shape)).eval(), tokenizer, embedding=Embedding("mean", True, 30))


@pytest.fixture
def seen(monkeypatch):
    """Count the encoders that are packed."""
    found = []
    make = NativeEncoder.__init__

    def noted(self, *args, **choices):
        found.append(choices)
        make(self, *args, **choices)

    monkeypatch.setattr(vectors, "WORTH_COMPILING", 0)
    vectors._sound_kernels()
    monkeypatch.setattr(NativeEncoder, "__init__", noted)
    return found


def usual(bundle, monkeypatch, *args, **choices):
    with monkeypatch.context() as patch:
        patch.setattr(NativeEncoder, "fits", staticmethod(lambda model: False))
        return Engine(bundle).embed(*args, **choices)


@NO_KERNELS
@pytest.mark.parametrize("pool", [None, "mean", "cls", "last"])
def test_vectors_are_the_same_both_ways(pool, sentences, seen, monkeypatch):
    texts = [text for text in TEXTS if sentences.encode(text)]
    found = Engine(sentences).embed(texts, pool)
    assert seen == [{"in_pairs": False}]
    torch.testing.assert_close(found, usual(sentences, monkeypatch, texts, pool), rtol=0, atol=2e-6)
    assert found.norm(dim=1).tolist() == pytest.approx([1.0] * len(texts))
    assert len(seen) == 1


@NO_KERNELS
def test_rounded_models_take_the_rounded_way_where_that_is_faster(sentences, seen, monkeypatch):
    sentences.model = quantize(sentences.model, 8)
    found = Engine(sentences).embed(TEXTS[2:])
    assert seen == [{"in_pairs": True}] * KERNELS.has_pairs
    torch.testing.assert_close(found, usual(sentences, monkeypatch, TEXTS[2:]), rtol=0, atol=1e-3)


@NO_KERNELS
def test_many_texts_take_several_calls(sentences, seen, monkeypatch):
    whole = Engine(sentences).embed(TEXTS[2:] * 5)
    monkeypatch.setattr(vectors, "CALL_TOKENS", 40)
    assert torch.equal(Engine(sentences).embed(TEXTS[2:] * 5), whole)


@NO_KERNELS
def test_weights_that_changed_are_packed_anew(sentences, seen, monkeypatch):
    engine = Engine(sentences)
    before = engine.embed(["the cat"])
    assert torch.equal(engine.embed(["the cat"]), before)
    assert len(seen) == 1
    with torch.no_grad():
        sentences.model.encoder.layers[1].ffn.up.weight.mul_(-2)
    after = engine.embed(["the cat"])
    assert len(seen) == 2
    assert not torch.allclose(after, before, atol=1e-3)
    torch.testing.assert_close(after, usual(sentences, monkeypatch, ["the cat"]), rtol=0, atol=2e-6)


@NO_KERNELS
def test_all_threads_share_one_text(sentences, seen):
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 4):
            torch.set_num_threads(count)
            found.append(Engine(sentences).embed([TEXTS[3]]))
    finally:
        torch.set_num_threads(threads)
    assert len(seen) == 2
    assert torch.equal(*found)


def test_kernels_that_compute_wrongly_are_left_alone(monkeypatch):
    class Wrong:
        has_pairs = False

    monkeypatch.setattr(vectors, "text_kernels", Wrong)
    monkeypatch.setattr(NativeEncoder, "__init__", lambda self, *args, **choices: None)
    monkeypatch.setattr(NativeEncoder, "run", lambda self, rows: (torch.zeros(48, 64), None))
    vectors._sound_kernels.cache_clear()
    try:
        with pytest.warns(UserWarning, match="computes wrongly"):
            assert vectors._sound_kernels() is None
    finally:
        vectors._sound_kernels.cache_clear()


def test_without_a_compiler_vectors_come_the_usual_way(sentences, seen, monkeypatch):
    monkeypatch.setattr(vectors, "_sound_kernels", lambda: None)
    found = Engine(sentences).embed(["the cat", "a"])
    assert not seen
    assert torch.equal(found, usual(sentences, monkeypatch, ["the cat", "a"]))


def test_nothing_to_embed_gives_no_vectors(sentences):
    assert Engine(sentences).embed([]).shape == (0, 64)
