"""Choices by probability: exact against the model's own logits, and calibrated by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from stockpot.bundle import Bundle
from stockpot.errors import GenerationError
from stockpot.generate.engine import Engine
from stockpot.prompt import extract, scoring
from stockpot.prompt.scoring import calibrated, check_options, option_log_probs, per_byte, pmi, relative
from stockpot.text.tokenizer import Tokenizer


def test_an_option_of_several_tokens_has_the_probability_of_them_all(make_bundle):
    bundle = make_bundle()
    options = [" yes", " entailment"]
    (found,) = option_log_probs(Engine(bundle), ["John ate"], [options])
    for option, log_prob in zip(options, found, strict=True):
        before, after = bundle.encode("John ate"), bundle.tokenizer.encode(option)
        with torch.inference_mode():
            logits = bundle.model(torch.tensor([before + after])).logits[0].log_softmax(-1)
        by_hand = sum(float(logits[len(before) - 1 + i, id]) for i, id in enumerate(after))
        assert log_prob == pytest.approx(by_hand, abs=1e-4)
    assert len(bundle.tokenizer.encode(" entailment")) > 1


def test_shares_sum_to_one_and_keep_the_order():
    raw = np.array([[-3.0, -1.0, -900.0]])
    share = np.exp(relative(raw))
    assert share.sum() == pytest.approx(1)
    assert share.argmax() == 1


def test_a_model_that_leans_is_set_upright():
    leaning = np.log([[0.8, 0.2], [0.6, 0.4]])  # mean 0.7, 0.3
    assert np.exp(calibrated(np.log([[0.7, 0.3]]), leaning)).round(6).tolist() == [[0.5, 0.5]]
    assert calibrated(np.log([[0.6, 0.4]]), leaning).argmax() == 1


def test_what_is_said_anyway_does_not_count():
    assert pmi(np.array([[-1.0, -2.0]]), np.array([[-0.5, -3.0]])).argmax() == 1


def test_long_options_are_not_worse_for_their_length():
    assert per_byte(np.array([[-4.0, -6.0]]), [[" no", " maybe"]]).argmax() == 1


def test_words_that_a_model_cannot_tell_apart_are_refused(make_bundle):
    with pytest.raises(GenerationError, match="same tokens"):
        check_options(make_bundle(), [" yes", " yes"])
    with pytest.raises(GenerationError, match="no tokens"):
        check_options(make_bundle(), [""])


def test_a_word_outside_the_vocabulary_is_refused(make_bundle):
    words = Tokenizer.train(["yes no"] * 3, kind="word", vocab_size=20)
    bundle = Bundle(make_bundle().model, words)
    check_options(bundle, ["yes", "no"])
    with pytest.raises(GenerationError, match="'perhaps' is not in this model's vocabulary"):
        check_options(bundle, ["yes", "perhaps"])


@pytest.mark.parametrize("module", [scoring, extract])
def test_the_examples_in_the_docstrings_hold(module):
    import doctest

    found = doctest.testmod(module, extraglobs={"np": np})
    assert found.attempted
    assert not found.failed


@pytest.mark.parametrize(
    ("reply", "kind", "found"),
    [
        ("23 - 20 = 3\n3 + 6 = 9", "number", "9"),
        ("The answer is 9, not 12.", "number", "9"),
        ("nothing", "number", None),
        ("\n  Paris.\nMore", "text", "Paris"),
        ("I think Maybe.", "choice", "maybe"),
        ("nope", "choice", None),
    ],
)
def test_answers_are_found_in_replies(reply, kind, found):
    assert extract.extract(reply, kind, ["yes", "no", "maybe"]) == found
