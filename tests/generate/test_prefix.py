"""A decoder trained to see its prompt from both sides is asked the same way, by every verb of the engine."""

from __future__ import annotations

import pytest
import torch

from stockpot.generate.engine import Engine
from stockpot.generate.request import Sampling

PROMPTS = ["the cat sat", "one two three four five"]


@pytest.fixture(scope="module")
def bundle(make_bundle):
    return make_bundle("decoder", attends="prefix")


def greedy(bundle, prompt, count):
    """Write without a cache: the prompt is segment 0, what is written is segment 1."""
    ids = bundle.encode(prompt)
    asked = len(ids)
    for _ in range(count):
        segments = torch.tensor([[0] * asked + [1] * (len(ids) - asked)])
        with torch.inference_mode():
            logits = bundle.model(torch.tensor([ids]), segments=segments).logits[0, -1]
        ids.append(int(logits.argmax()))
        if ids[-1] in bundle.stop_ids:
            break
    return tuple(ids[asked:])


def test_prompts_are_read_in_both_directions(bundle):
    for made, prompt in zip(
        Engine(bundle).generate(PROMPTS, Sampling(max_tokens=8, temperature=0)), PROMPTS, strict=True
    ):
        assert made.ids == greedy(bundle, prompt, 8)


def test_beams_and_scores_read_them_so_too(bundle):
    engine = Engine(bundle)
    for prompt in PROMPTS:
        ids = greedy(bundle, prompt, 5)
        (found,) = engine.generate([prompt], Sampling(max_tokens=5, beams=1))
        assert found.ids == ids
        (score,) = engine.score([(prompt, ids[:4])])
        assert score.is_greedy


def test_it_makes_a_difference(bundle):
    with torch.inference_mode():
        ids = torch.tensor([bundle.encode(PROMPTS[1])])
        causal, both = (
            bundle.model(ids, segments=one).logits[0, -1] for one in (None, torch.zeros_like(ids))
        )
    assert not torch.allclose(causal, both, atol=1e-3)
