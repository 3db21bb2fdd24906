"""Batches of prompts with answers: only the answers count, and a place in the data can be taken up again."""

from __future__ import annotations

from itertools import islice

import pytest
import torch

from stockpot.errors import GenerationError
from stockpot.generate.engine import Engine
from stockpot.prompt.training import AnswerBatches, answer_batch, answer_batches
from stockpot.train.losses import next_token_loss

PAIRS = [("John ate", " yes"), ("John ate pasta for", " maybe"), ("John", " no")]


def test_the_loss_is_the_engines_log_probability(make_bundle):
    bundle = make_bundle()
    with torch.inference_mode():
        loss = next_token_loss(bundle.model, answer_batch(bundle, PAIRS))
    scores = Engine(bundle).score(PAIRS)
    assert float(loss.total) == pytest.approx(-sum(one.log_prob for one in scores), rel=1e-4)
    assert int(loss.count) == sum(one.tokens for one in scores)


def test_each_pass_has_every_pair_once_and_a_place_can_be_taken_up(make_bundle):
    batches = AnswerBatches(make_bundle(), PAIRS, size=2, seed=1)
    first = list(islice(batches, 2))
    assert sum(len(one.ids) for one in first) == 3
    place = batches.state_dict()
    (after,) = islice(batches, 1)
    again = AnswerBatches(make_bundle(), PAIRS, size=2, seed=1)
    again.load_state_dict(place)
    assert torch.equal(next(iter(again)).ids, after.ids)


def test_a_pair_that_does_not_fit_is_refused(make_bundle):
    with pytest.raises(GenerationError, match="Pair 0 has"):
        answer_batch(make_bundle(context=16), [("John ate pasta " * 9, " yes")])


def test_pairs_of_like_lengths_share_a_batch(make_bundle):
    pairs = [("John ate pasta " * (1 + 9 * (n % 2)), " yes") for n in range(64)]
    batches = AnswerBatches(make_bundle(context=256), pairs, size=8, seed=1)
    dealt = list(islice(batches, 8))
    assert sum(len(one.ids) for one in dealt) == 64
    assert all(one.attention_mask is None for one in dealt), (
        "short and long ones are apart: nothing is padded"
    )
    lengths = [one.ids.shape[1] for one in dealt]
    assert lengths != sorted(lengths), "but batches come in any order"
    assert [one.ids.shape[1] for one in islice(batches, 8)] != lengths, "another one in each pass"


def test_what_is_measured_has_every_pair_in_batches_of_like_lengths(make_bundle):
    bundle = make_bundle(context=256)
    pairs = [("John ate pasta " * (1 + 9 * (n % 2)), " yes") for n in range(10)]
    batches = answer_batches(bundle, pairs, 5)
    assert [len(one.ids) for one in batches] == [5, 5]
    assert all(one.attention_mask is None for one in batches)
    with torch.inference_mode():
        parts = sum(float(next_token_loss(bundle.model, one).total) for one in batches)
        whole = float(next_token_loss(bundle.model, answer_batch(bundle, pairs)).total)
    assert parts == pytest.approx(whole, rel=1e-4)
