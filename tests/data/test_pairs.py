"""Comparisons as ids: what is shared, what is held out, and in which order they come."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from stockpot.data.batch import IGNORED
from stockpot.data.encode import encode_preference
from stockpot.data.pairs import FixedPairs, PairLoader, encode_pairs
from stockpot.data.records import PreferenceRecord
from stockpot.errors import DataError
from stockpot.text import Message


def record(number, prompt=None, **choices):
    return PreferenceRecord(
        prompt or f"soup {number % 7}", f"salt {number}", f"a spoon now {number}", **choices
    )


@pytest.fixture
def pairs(tokenizer, template):
    return encode_pairs(
        [record(i, tie=i == 3, margin=2.0 if i == 4 else None) for i in range(30)],
        tokenizer,
        template,
        context=64,
    )


def test_a_pair_is_its_prompt_and_both_answers(tokenizer, template):
    one = record(0, prompt=(Message("system", "pot"), Message("user", "stir")))
    encoded = encode_preference(one, tokenizer, template)
    batch = encode_pairs([one], tokenizer, template, context=64).batch([0])
    texts = batch.texts
    for number, side in enumerate(encoded):
        rows = (texts.answers[0] == number) & (texts.labels[0] != IGNORED)
        assert texts.labels[0][rows].tolist() == side.ids[side.counted].tolist()
    trunk = texts.ids[0][texts.answers[0] < 0].tolist()
    start = int(np.flatnonzero(encoded[0].counted)[0])
    assert trunk == encoded[0].ids[: start - 1].tolist()
    assert batch.tokens < sum(len(side.ids) for side in encoded)


def test_without_a_template_prompt_and_answer_follow_each_other(tokenizer):
    pairs = encode_pairs([record(0)], tokenizer, context=64)
    assert pairs.trees[0].trunk[0] == tokenizer.bos_id
    assert all(answer.ids[-1] == tokenizer.eos_id for answer in pairs.trees[0].answers)


def test_ties_and_margins_ride_along(pairs):
    batch = pairs.batch([2, 3, 4])
    assert batch.chance.tolist() == [1.0, 0.5, 1.0]
    assert batch.margin.tolist() == [0.0, 0.0, 2.0]
    assert batch.reference is None


def test_no_prompt_is_on_both_sides(pairs):
    train, held_out = pairs.split(0.3, seed=1)
    assert not set(train.prompts) & set(held_out.prompts)
    assert len(train) + len(held_out) == len(pairs)
    assert len(set(held_out.prompts)) == 2
    assert train.fingerprint != held_out.fingerprint != pairs.fingerprint
    assert pairs.without_prompts_of(held_out).prompts == train.prompts
    assert train.without_prompts_of(held_out) is train


def test_one_prompt_cannot_be_split(tokenizer, template):
    pairs = encode_pairs([record(i, prompt="soup") for i in range(3)], tokenizer, template, context=64)
    with pytest.raises(DataError, match="none can be held out"):
        pairs.split(0.5)


def test_what_is_too_long_is_left_out_and_counted(tokenizer, template, caplog):
    long = PreferenceRecord("soup", "salt " * 60, "pot", where="f:2")
    pairs = encode_pairs([record(0), long], tokenizer, template, context=40)
    assert (len(pairs), pairs.overlong) == (1, 1)
    assert "f:2" in caplog.text
    with pytest.raises(DataError, match="All 1 are longer than 40 tokens"):
        encode_pairs([long], tokenizer, template, context=40)


def test_an_epoch_sees_every_pair_once(pairs):
    loader = PairLoader(pairs, tokens=60, seed=3)
    firsts = [tree.answers[0].ids.tolist() for tree in pairs.trees]

    def epoch():
        seen = []
        while len(seen) < len(pairs):
            batch = next(loader)
            assert batch.tokens <= 60
            for answer in range(0, int(batch.texts.answers.max()) + 1, 2):
                seen.append(firsts.index(batch.ids[batch.texts.answers == answer].tolist()))
        return seen

    one, other = epoch(), epoch()
    assert sorted(one) == sorted(other) == list(range(30))
    assert one != other


def test_a_loader_goes_on_exactly(pairs):
    loader = PairLoader(pairs, tokens=60, seed=3)
    for _ in range(5):
        next(loader)
    state = loader.state_dict()
    wanted = list(itertools.islice(loader, 12))
    again = PairLoader(pairs, tokens=60, seed=3)
    again.load_state_dict(state)
    assert all(torch.equal(a.ids, b.ids) for a, b in zip(wanted, again, strict=False))
    with pytest.raises(DataError, match="other comparisons or settings"):
        PairLoader(pairs, tokens=60, seed=4).load_state_dict(state)


def test_reference_log_probabilities_ride_along(pairs):
    from dataclasses import replace

    known = replace(pairs, reference=np.arange(60, dtype=np.float32).reshape(30, 2))
    assert known.batch([4, 1]).reference.tolist() == [8.0, 9.0, 2.0, 3.0]
    assert known.only([2, 0], "x").batch([0]).reference.tolist() == [4.0, 5.0]


def test_validation_walks_everything_in_order(pairs):
    batches = list(FixedPairs(pairs, tokens=100))
    assert sum(len(batch.chance) for batch in batches) == 30
    again = list(FixedPairs(pairs, tokens=100))
    assert all(torch.equal(a.ids, b.ids) for a, b in zip(batches, again, strict=True))
