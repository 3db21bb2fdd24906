"""The engine with quantised models: same answers alone, in company, streamed and scored."""

from __future__ import annotations

import pytest
import torch

from stockpot.generate.engine import Engine
from stockpot.generate.request import Sampling
from stockpot.model.quantized import quantize

SIZES = {"dim": 64, "heads": 4, "kv_heads": 2, "head_dim": 16, "context": 96}
PROMPTS = ["the cat", "one two three four five", "naïve", "User: who is there?"]


@pytest.fixture(params=[8, 4])
def bundle(request, make_bundle):
    bundle = make_bundle(**SIZES)
    bundle.model = quantize(bundle.model, request.param)
    return bundle


def test_company_changes_no_answer(bundle):
    greedy = Sampling(temperature=0, max_tokens=24)
    together = Engine(bundle, slots=4).generate(PROMPTS, greedy)
    alone = [Engine(bundle, slots=1).generate([prompt], greedy)[0] for prompt in PROMPTS]
    assert [one.ids for one in together] == [one.ids for one in alone]
    assert len({one.ids for one in together}) > 1


def test_a_greedy_answer_is_scored_as_greedy(bundle):
    engine = Engine(bundle)
    answer = engine.generate(["the cat"], Sampling(temperature=0, max_tokens=12, logprobs=0))[0]
    score = engine.score([("the cat", answer.ids)])[0]
    assert score.is_greedy
    assert score.log_prob == pytest.approx(sum(answer.log_probs), abs=1e-4)


def test_texts_are_embedded(bundle):
    vectors = Engine(bundle).embed(["the cat", "one two three four"])
    assert vectors.shape == (2, 64)
    assert torch.isfinite(vectors).all()


def test_beams_work(bundle):
    best = Engine(bundle).generate(["the cat"], Sampling(beams=3, max_tokens=8))[0]
    assert best.tokens > 0
