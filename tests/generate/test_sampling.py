"""The functions between logits and ids, alone and in their order."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stockpot.generate.request import Sampling
from stockpot.generate.sampling import (
    Filters,
    draw,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    penalise_counts,
    penalise_repetition,
    sample,
    scale,
)


def column(*values, dtype=torch.float32):
    return torch.tensor(values, dtype=dtype).unsqueeze(1)


def kept(logits):
    return [set(row.isfinite().nonzero().flatten().tolist()) for row in logits]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


LOGITS = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()


def test_top_k_keeps_the_k_likeliest_of_each_row():
    logits = torch.tensor([[1.0, 4.0, 2.0, 3.0]]).repeat(3, 1)
    found = keep_top_k(logits, column(1, 2, 0, dtype=torch.int64), 2)
    assert kept(found) == [{1}, {1, 3}, {0, 1, 2, 3}]


def test_top_k_above_the_vocabulary_keeps_all():
    assert kept(keep_top_k(LOGITS, column(99, dtype=torch.int64), 99)) == [{0, 1, 2, 3}]


@pytest.mark.parametrize(
    ("top_p", "ids"),
    [(0.4, {0}), (0.5, {0}), (0.6, {0, 1}), (0.9, {0, 1, 2}), (0.97, {0, 1, 2, 3}), (1.0, {0, 1, 2, 3})],
)
def test_top_p_keeps_the_smallest_set_that_holds_p(top_p, ids):
    assert kept(keep_top_p(LOGITS.double().float(), column(top_p - 1e-6 if top_p < 1 else 1.0))) == [ids]


def test_top_p_looks_at_the_whole_vocabulary_when_it_must():
    flat = torch.zeros(1, 1000)  # a nucleus of 0.9 needs 900 of 1000 equal ids; ties are kept together
    slope = torch.linspace(0, -0.01, 1000).unsqueeze(0)
    assert len(kept(keep_top_p(flat, column(0.9)))[0]) == 1000
    assert len(kept(keep_top_p(slope, column(0.9)))[0]) == pytest.approx(899, abs=2)


def test_min_p_is_a_share_of_the_likeliest():
    assert kept(keep_min_p(LOGITS, column(0.31))) == [{0, 1}]
    assert kept(keep_min_p(LOGITS, column(0.29))) == [{0, 1, 2}]
    assert kept(keep_min_p(LOGITS, column(0.0))) == [{0, 1, 2, 3}]


def test_the_repetition_penalty_divides_positive_and_multiplies_negative_logits():
    logits = torch.tensor([[2.0, -2.0, 2.0, -2.0]])
    seen = torch.tensor([[True, True, False, False]])
    assert penalise_repetition(logits, seen, column(2.0)).tolist() == [[1.0, -4.0, 2.0, -2.0]]


def test_presence_counts_once_and_frequency_each_time():
    counts = torch.tensor([[0.0, 1.0, 3.0]])
    found = penalise_counts(torch.zeros(1, 3), counts, column(0.5), column(0.25))
    assert found.tolist() == [[0.0, -0.75, -1.25]]


def test_a_tiny_temperature_does_not_overflow():
    found = scale(torch.tensor([[80.0, 90.0, 88.0]]), column(1e-38))
    assert found.softmax(-1).tolist() == [[0.0, 1.0, 0.0]]


@pytest.mark.parametrize("temperature", [1e-40, 1e-46, 1e-300])
def test_a_temperature_that_no_float32_holds_takes_the_likeliest(temperature):
    filters = Filters.of([Sampling(temperature=temperature)])
    assert sample(torch.tensor([[1.0, 2.0, 2.5, 0.0]]), filters, [generator()]).tolist() == [2]


def test_frequencies_match_probabilities():
    # 20,000 draws; chi-square with 5 degrees of freedom is above 20.5 once in a thousand seeds.
    probabilities = torch.tensor([0.4, 0.25, 0.2, 0.1, 0.04, 0.01])
    source = generator(1)
    ids = draw(probabilities.log().repeat(20_000, 1), [source] * 20_000)
    counts = torch.bincount(ids, minlength=6)
    expected = probabilities * 20_000
    assert ((counts - expected) ** 2 / expected).sum() < 20.5


def test_frequencies_match_after_every_filter():
    # temperature 0.5 squares the probabilities; top-k drops the last; top-p then drops the third.
    logits = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()
    filters = Filters.of([Sampling(temperature=0.5, top_k=3, top_p=0.8)] * 20_000)
    source = generator(2)
    counts = torch.bincount(sample(logits.repeat(20_000, 1), filters, [source] * 20_000), minlength=4)
    expected = torch.tensor([0.16, 0.09]) / 0.25 * 20_000
    assert counts[2:].sum() == 0
    assert ((counts[:2] - expected) ** 2 / expected).sum() < 10.8  # once in a thousand seeds


def test_an_impossible_id_is_never_drawn():
    logits = torch.full((1000, 8), -math.inf)
    logits[:, 3] = 0.0
    source = generator()
    assert draw(logits, [source] * 1000).unique().tolist() == [3]


def test_rows_do_not_see_each_other():
    torch.manual_seed(0)
    logits = torch.randn(5, 50)
    wishes = [
        Sampling(),
        Sampling(temperature=0),
        Sampling(top_k=5, temperature=0.7),
        Sampling(top_p=0.5),
        Sampling(min_p=0.3, top_k=20),
    ]
    together = sample(logits, Filters.of(wishes), [generator(i) for i in range(5)])
    alone = [
        int(sample(logits[i : i + 1], Filters.of([one]), [generator(i)])) for i, one in enumerate(wishes)
    ]
    assert together.tolist() == alone


def test_greedy_rows_take_the_likeliest():
    logits = torch.tensor([[1.0, 3.0, 2.0], [5.0, 1.0, 2.0]])
    assert sample(logits, Filters.of([Sampling(temperature=0)] * 2), [generator()] * 2).tolist() == [1, 0]


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.floats(-30, 30, width=32), min_size=2, max_size=40),
    st.integers(1, 45),
    st.floats(0.01, 1.0),
    st.floats(0.0, 1.0),
)
def test_filters_always_leave_the_likeliest(values, top_k, top_p, min_p):
    logits = torch.tensor([values])
    found = keep_min_p(
        keep_top_p(keep_top_k(logits, column(top_k, dtype=torch.int64), top_k), column(top_p)), column(min_p)
    )
    assert int(logits.argmax()) in kept(found)[0]
    assert len(kept(found)[0]) <= len(values)
