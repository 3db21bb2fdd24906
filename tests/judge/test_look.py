"""The page that shows what a model sees: right numbers, and nothing in it can run or fetch."""

from __future__ import annotations

import base64
import json
import re

import pytest
import torch

from stockpot.errors import GenerationError
from stockpot.judge.look import lens, look, read

TEXT = "What is it? yes no"


@pytest.fixture(scope="module")
def bundle(make_bundle):
    return make_bundle()


def test_a_decoders_probabilities_are_those_of_its_softmax(bundle):
    reading = read(bundle, TEXT)
    ids = bundle.encode(TEXT)
    with torch.inference_mode():
        expected = bundle.model(torch.tensor([ids])).logits[0].softmax(-1)
    assert reading.tokens[0].probability is None
    for place in range(1, len(ids)):
        assert reading.tokens[place].probability == pytest.approx(
            float(expected[place - 1, ids[place]]), abs=1e-5
        )
        best = expected[place - 1].topk(8).values.tolist()
        assert [p for _, p in reading.tokens[place].alternatives] == pytest.approx(best, abs=1e-4)


@pytest.mark.parametrize("shape", ["decoder", "encoder"])
def test_the_last_layer_says_what_the_model_says_and_the_first_one_something_else(make_bundle, shape):
    bundle = make_bundle(shape)
    ids = bundle.encode(TEXT)
    reading = read(bundle, ids)
    for place in range(1, len(ids)):
        layers = lens(bundle, reading, place)
        assert len(layers) == 3  # embeddings and two layers
        assert layers[-1].probability == pytest.approx(reading.tokens[place].probability, abs=1e-5)
        assert layers[-1].alternatives[0][0] == reading.tokens[place].alternatives[0][0]
        assert layers[0].probability != layers[-1].probability
    assert (lens(bundle, reading, 0) is None) == (shape == "decoder")


def test_ids_are_read_as_they_are_and_told_with_what_else_could_stand_there(bundle):
    ids = bundle.encode(TEXT)
    reading = read(bundle, ids[:4])
    assert [token.id for token in reading.tokens] == ids[:4]
    last = reading.tokens[-1]
    assert [bundle.tokenizer.decode([id]) for id in last.alternative_ids] == [
        text for text, _ in last.alternatives
    ]


def test_attention_is_that_of_every_head_and_a_decoders_looks_back_only(bundle):
    attention = read(bundle, TEXT).attention
    seq = len(bundle.encode(TEXT))
    assert attention.shape == (2, 2, seq, seq)
    torch.testing.assert_close(attention.sum(-1), torch.ones(2, 2, seq))
    assert not attention.triu(1).any()


def test_an_encoder_predicts_every_token_and_looks_both_ways(make_bundle):
    reading = read(make_bundle("encoder"), TEXT)
    assert all(token.probability is not None for token in reading.tokens)
    assert reading.attention.triu(1).any()


def test_the_page_holds_what_was_read(bundle):
    page = look(bundle, TEXT)
    data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)[1])
    assert "".join(token["text"] for token in data["tokens"]).endswith(TEXT)
    weights = torch.frombuffer(bytearray(base64.b64decode(data["attention"])), dtype=torch.uint8)
    expected = (read(bundle, TEXT).attention * 255).round()
    assert (weights.float() - expected.flatten()).abs().max() == 0


def test_nothing_in_the_page_can_be_fetched_and_text_cannot_become_script(bundle):
    page = look(bundle, "</script><script>alert(1)</script><img src=http://x.test/>")
    assert page.count("<script") == 2
    assert "<img" not in page
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]+)"', page)[1]
    assert "default-src 'none'" in policy
    assert "script-src 'sha256-" in policy
    assert "unsafe-eval" not in policy
    assert not re.search(r"(?:src|href)=[\"']?(?:https?:)?//", page)


def test_what_does_not_fit_is_refused(bundle):
    with pytest.raises(GenerationError, match="takes 1 to 96"):
        read(bundle, "yes " * 300)


def test_an_encoder_decoder_is_refused(make_bundle):
    with pytest.raises(GenerationError, match="decoders and encoders"):
        read(make_bundle("encoder_decoder"), TEXT)
