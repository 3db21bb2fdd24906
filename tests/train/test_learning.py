"""Each shape can learn: a tiny encoder, decoder and encoder-decoder overfit one batch of their own objective."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from training import settings

from stockpot.data.corrupt import objective
from stockpot.data.encode import encode
from stockpot.data.loader import Loader, LoaderConfig
from stockpot.data.records import TextRecord
from stockpot.model import config
from stockpot.model.transformer import Transformer
from stockpot.text.tokenizer import SPECIAL_TOKENS, Tokenizer
from stockpot.train.loop import fit
from stockpot.train.losses import masked_token_loss, next_token_loss, sequence_to_sequence_loss

LOSSES = {
    "encoder": masked_token_loss,
    "decoder": next_token_loss,
    "encoder_decoder": sequence_to_sequence_loss,
}


@pytest.fixture(scope="module")
def corpus():
    generator = np.random.default_rng(0)
    words = "soup salt stone pot fire water bread onion carrot cabbage".split()  # noqa: SIM905 - read as a line
    texts = [". ".join(" ".join(generator.choice(words, 4)) for _ in range(4)) + "." for _ in range(40)]
    marks = [f"<|extra_{number}|>" for number in range(20)]
    tokenizer = Tokenizer.train(texts, kind="word", vocab_size=80, special_tokens=[*SPECIAL_TOKENS, *marks])
    return tokenizer, encode((TextRecord(text, "here") for text in texts), tokenizer)


def start(shape, aim, corpus):
    tokenizer, store = corpus
    choices = {"attends": "prefix"} if (shape, aim) == ("decoder", "prefix") else {}
    torch.manual_seed(0)
    model = Transformer(
        getattr(config, shape)(
            layers=2, dim=48, heads=2, context=64, vocab_size=tokenizer.vocab_size, **choices
        )
    )
    made = objective(aim, tokenizer, two_stacks=shape == "encoder_decoder")
    return model, next(Loader(store, LoaderConfig(context=64, micro_batch=4), made))


@pytest.mark.parametrize(
    ("shape", "aim"), [("decoder", "causal"), ("encoder", "masked"), ("encoder_decoder", "span")]
)
def test_each_shape_learns_in_bfloat16(shape, aim, corpus):
    model, batch = start(shape, aim, corpus)
    events = []
    config = settings(steps=20, dtype="bfloat16")
    fit(model, itertools.repeat(batch), LOSSES[shape], config, progress=events.append)
    assert events[-1]["loss"] < 0.8 * events[0]["loss"]


@pytest.mark.parametrize(
    ("shape", "aim"),
    [
        ("decoder", "causal"),
        ("decoder", "prefix"),
        ("encoder", "masked"),
        ("encoder", "pairs"),
        ("encoder_decoder", "span"),
        ("encoder_decoder", "prefix"),
    ],
)
def test_each_shape_overfits_one_batch_of_its_objective(shape, aim, corpus):
    tokenizer, _ = corpus
    model, batch = start(shape, aim, corpus)
    events = []
    fit(model, itertools.repeat(batch), LOSSES[shape], settings(steps=80), progress=events.append)
    assert events[0]["loss"] == pytest.approx(math.log(tokenizer.vocab_size), rel=0.15), "it knows nothing"
    # A decoder cannot know a document's first word: one of ten, in every 17th token, is 0.14 nats on average.
    assert events[-1]["loss"] < (0.2 if aim == "causal" else 0.1)
    assert events[-1].get("pair_loss", 0) < 0.1
