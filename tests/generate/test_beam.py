"""Beam search finds what an exhaustive search finds, and greedy decoding is its narrowest case."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from stockpot.bundle import Bundle
from stockpot.errors import GenerationError
from stockpot.generate.engine import Engine
from stockpot.generate.request import Sampling
from stockpot.model.config import decoder
from stockpot.model.transformer import Transformer
from stockpot.text.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def small():
    """Make a vocabulary of seven ids, small enough to try every answer."""
    tokenizer = Tokenizer.train(
        ["abcd"], kind="char", vocab_size=8, special_tokens=["<|unk|>", "<|bos|>", "<|eos|>"]
    )
    torch.manual_seed(3)
    model = Transformer(
        decoder(layers=1, dim=16, heads=2, context=16, vocab_size=tokenizer.vocab_size)
    ).eval()
    with torch.no_grad():
        for param in model.parameters():
            if param.ndim > 1:
                param.normal_(std=0.8)
            else:
                param.fill_(1.0)
    return Bundle(model, tokenizer)


def every_answer(bundle, prompt, tokens, length_penalty):
    """All answers of up to ``tokens`` ids with their scores, best first."""
    ids, eos = bundle.encode(prompt), bundle.tokenizer.eos_id
    found = []
    for answer in itertools.product(range(bundle.model.config.vocab_size), repeat=tokens):
        length = answer.index(eos) + 1 if eos in answer else tokens
        if any(id != 0 for id in answer[length:]):
            continue  # the same answer with another tail
        answer = answer[:length]
        with torch.inference_mode():
            logits = bundle.model(torch.tensor([ids + list(answer)])).logits[0, len(ids) - 1 : -1]
        total = logits.log_softmax(-1).gather(1, torch.tensor(answer).unsqueeze(1)).sum()
        found.append((float(total) / length**length_penalty, answer))
    return sorted(found, reverse=True)


@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.0])
def test_wide_beams_find_the_best_answers_there_are(small, length_penalty):
    settings = Sampling(beams=150, n=4, max_tokens=3, length_penalty=length_penalty)
    found = Engine(small).generate(["ab"], settings)
    expected = every_answer(small, "ab", 3, length_penalty)[:4]
    assert [one.ids for one in found] == [ids for _, ids in expected]
    assert [one.beam_score for one in found] == pytest.approx([score for score, _ in expected], abs=1e-4)


def test_one_beam_is_greedy(engine):
    for prompt in ("the cat", "one two"):
        greedy = engine.generate([prompt], Sampling(temperature=0, max_tokens=12))[0]
        beam = engine.generate([prompt], Sampling(beams=1, max_tokens=12))[0]
        assert (beam.ids, beam.text, beam.finish_reason) == (greedy.ids, greedy.text, greedy.finish_reason)


@pytest.mark.parametrize("shape", ["bundle", "seq2seq"])
def test_the_score_is_the_likelihood_of_the_answer(shape, request):
    engine = Engine(request.getfixturevalue(shape))
    found = engine.generate(["the cat"], Sampling(beams=4, n=4, max_tokens=8, length_penalty=1.0))
    scores = [one.beam_score for one in found]
    assert scores == sorted(scores, reverse=True)
    assert len({one.ids for one in found}) == 4
    for one, score in zip(found, engine.score([("the cat", one.ids) for one in found]), strict=True):
        assert one.beam_score == pytest.approx(score.log_prob / one.tokens, abs=1e-4)


def test_more_beams_never_find_worse_than_greedy_here(engine):
    settings = Sampling(temperature=0, max_tokens=10, min_tokens=10)
    greedy = engine.score([("the cat", engine.generate(["the cat"], settings)[0].ids)])[0].log_prob
    wide = engine.generate(["the cat"], Sampling(beams=8, max_tokens=10, min_tokens=10, length_penalty=0.0))[
        0
    ]
    assert wide.beam_score >= greedy - 1e-4


def test_min_tokens_holds_for_beams(engine):
    found = engine.generate(["the cat"], Sampling(beams=3, n=3, max_tokens=9, min_tokens=9))
    assert [one.tokens for one in found] == [9, 9, 9]


def test_a_stop_text_cuts_the_answer(engine):
    whole = engine.generate(["the cat"], Sampling(beams=2, max_tokens=12, min_tokens=12))[0]
    stop = whole.text[3:5]
    found = engine.generate(["the cat"], Sampling(beams=2, max_tokens=12, min_tokens=12, stop=(stop,)))[0]
    assert found.text == whole.text[: whole.text.find(stop)] and found.finish_reason == "stop"


def test_fewer_answers_than_were_asked_for_are_told(bundle):
    """Otherwise the answers to the next prompt would be taken for this one's."""
    size = bundle.model.config.vocab_size
    two_left = dict.fromkeys(range(size - 2), -math.inf)
    with pytest.raises(GenerationError, match="2 answers, not 3"):
        Engine(bundle).generate(["the cat", "far"], Sampling(beams=3, n=3, max_tokens=1, logit_bias=two_left))
