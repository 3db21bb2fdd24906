"""Guessing ahead changes how many steps an answer takes, never the answer."""

from __future__ import annotations

import pytest

from stockpot.generate.engine import Engine
from stockpot.generate.lookup import Lookup
from stockpot.generate.request import Request, Sampling
from stockpot.model.quantized import quantize

PROMPTS = [
    "the cat sat on the mat and the cat sat on",
    "one two three one two",
    "naïve",
    "one two three four",
]
KINDS = {
    "greedy": {"temperature": 0},
    "drawn": {"seed": 4, "top_p": 0.9},
    "penalised": {"temperature": 0, "repetition_penalty": 1.2, "frequency_penalty": 0.3},
    "reported": {"temperature": 0, "logprobs": 2},
    "stopped": {"temperature": 0, "stop": ("a", "\n")},
    "never ending": {"temperature": 0, "min_tokens": 40},
}


def test_a_guess_is_what_followed_the_same_ids_most_recently():
    lookup = Lookup([1, 2, 3, 1, 2, 4, 1, 2], 8)
    assert lookup.guess(5) == [4, 1, 2, 4, 1]  # what reaches the end goes on with itself
    assert lookup.guess(1) == [4]
    lookup.push(7)
    assert lookup.guess(8) == []


def test_guesses_shrink_when_they_are_wrong_and_grow_when_they_are_right():
    lookup = Lookup(list(range(20)) + list(range(4)), 8)
    lookup.learn(8, 1)
    assert len(lookup.guess(8)) == 2
    lookup.learn(2, 2)
    assert len(lookup.guess(8)) == 4


@pytest.mark.parametrize("kind", KINDS)
def test_answers_are_those_without_guessing(bundle, kind):
    settings = {"max_tokens": 40, **KINDS[kind]}
    wanted = Engine(bundle, slots=4).generate(PROMPTS, Sampling(**settings))
    found = Engine(bundle, slots=4).generate(PROMPTS, Sampling(lookup=8, **settings))
    assert [(one.text, one.ids, one.finish_reason) for one in found] == [
        (one.text, one.ids, one.finish_reason) for one in wanted
    ]
    for one, other in zip(found, wanted, strict=True):
        assert one.log_probs == pytest.approx(other.log_probs, abs=1e-4)


@pytest.mark.parametrize("bits", [8, 4])
def test_answers_of_quantised_models_are_the_same_to_the_bit(make_bundle, bits):
    bundle = make_bundle(dim=64, heads=4, kv_heads=2, head_dim=16, context=96)
    bundle.model = quantize(bundle.model, bits)
    settings = {"temperature": 0, "max_tokens": 60, "logprobs": 0}
    wanted = Engine(bundle).generate(PROMPTS, Sampling(**settings))
    found = Engine(bundle).generate(PROMPTS, Sampling(lookup=16, **settings))
    assert [(one.ids, one.log_probs) for one in found] == [(one.ids, one.log_probs) for one in wanted]


def test_an_encoder_decoder_guesses_too(seq2seq):
    settings = {"temperature": 0, "max_tokens": 40, "min_tokens": 40}
    wanted = Engine(seq2seq).generate(PROMPTS, Sampling(**settings))
    found = Engine(seq2seq).generate(PROMPTS, Sampling(lookup=8, **settings))
    assert [one.ids for one in found] == [one.ids for one in wanted]


def test_repeated_text_takes_fewer_steps(bundle, count_calls):
    bias = {bundle.tokenizer.encode(word)[0]: 100.0 for word in ("o",)}  # it writes one letter for ever
    settings = {"temperature": 0, "max_tokens": 40, "min_tokens": 40, "logit_bias": bias}
    with count_calls(bundle.model) as plain:
        wanted = Engine(bundle).generate(["the cat"], Sampling(**settings))
    with count_calls(bundle.model) as guessed:
        found = Engine(bundle).generate(["the cat"], Sampling(lookup=8, **settings))
    assert found[0].ids == wanted[0].ids
    assert len(plain) == 40
    assert len(guessed) < 15


def test_requests_with_and_without_guessing_share_steps(bundle):
    plain = Sampling(temperature=0, max_tokens=30)
    ahead = Sampling(temperature=0, max_tokens=30, lookup=8)
    alone = [Engine(bundle).generate([prompt], plain)[0].ids for prompt in PROMPTS]
    engine = Engine(bundle, slots=4)
    numbers = [
        engine.submit(Request(prompt, ahead if at % 2 else plain)) for at, prompt in enumerate(PROMPTS)
    ]
    found = dict.fromkeys(numbers, ())
    while engine.pending:
        for chunk in engine.step():
            found[chunk.request] += chunk.ids
    assert list(found.values()) == alone
