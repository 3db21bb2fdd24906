"""Counting: probabilities by hand, sums to one, and what was never seen."""

from __future__ import annotations

import numpy as np
import pytest

from stockpot.train.ngram import NGram

TEXT = [0, 1, 2, 0, 1, 3, 0, 1, 2]


def test_bigrams_by_hand():
    """After 1 stood 2 twice and 3 once. Pairs: 01 ×3, 12 ×2, 20, 13, 30 once each.

    D = 3 / (3 + 2 · 1) = 0.6. Below it count how many different ids a token followed: 0 after 2 and 3; 1, 2, 3 after one each; of
    these counts three are 1 and one is 2, so D' = 3 / 5 = 0.6, and p'(2) = (1 - 0.6) / 5 + 0.6 · 4 / 5 · 1 / 4 = 0.2.
    p(2 | 1) = (2 - 0.6) / 3 + 0.6 · 2 / 3 · 0.2 = 0.5467.
    """
    model = NGram.read(TEXT, 4, order=2)
    assert model.probabilities([1])[2] == pytest.approx(1.4 / 3 + 0.4 * 0.2)
    assert model.probabilities([1])[3] == pytest.approx(0.4 / 3 + 0.4 * 0.2)
    assert model.log_prob([0, 1], [2]) == pytest.approx(np.log(1.4 / 3 + 0.4 * 0.2))


@pytest.mark.parametrize("context", [[], [1], [0, 1], [3, 3], [0, 1, 2, 0, 1]])
def test_every_context_has_a_whole_distribution(context):
    found = NGram.read(TEXT, 6, order=3).probabilities(context)
    assert found.sum() == pytest.approx(1.0)
    assert (found > 0).all(), "ids that were never seen are possible, too"


def test_a_longer_context_that_was_not_seen_leaves_the_shorter_one():
    model = NGram.read(TEXT, 5, order=3)
    assert np.allclose(model.probabilities([4, 1]), model.probabilities([1]))


def test_it_writes_what_it_saw_and_ends_where_told():
    model = NGram.read(TEXT * 3, 5, order=4)
    assert model.write([3], most=3) == [0, 1, 2]
    assert model.write([3], most=9, ends={2}) == [0, 1]


def test_what_cannot_be_counted_is_refused():
    with pytest.raises(ValueError, match="too few"):
        NGram.read([1, 2], 5, order=3)
    with pytest.raises(ValueError, match="0 … 4"):
        NGram.read([1, 2, 5], 5, order=2)
