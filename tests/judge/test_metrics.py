from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stockpot.judge.metrics import (
    STUDENT,
    exact_match,
    in_words,
    mcnemar,
    mean_estimate,
    paired_difference,
    proportion,
    ratio_estimate,
    score_estimate,
    student,
)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilsons_interval_contains_the_proportion_and_stays_within_0_and_1(counts):
    successes, n = counts
    estimate = proportion(successes, n)
    assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1


def test_wilsons_interval_by_hand():
    # p = 8/10, z = 1.96: centre (0.8 + 0.19207) / 1.38415, half 0.22632
    estimate = proportion(8, 10)
    assert (estimate.low, estimate.high) == pytest.approx((0.49016, 0.94332), abs=1e-4)


def test_wilsons_interval_covers_the_truth_about_19_times_in_20():
    generator = np.random.default_rng(0)
    draws = generator.binomial(40, 0.3, size=4_000)
    covered = np.mean([(e := proportion(int(k), 40)).low <= 0.3 <= e.high for k in draws])
    assert 0.93 < covered < 0.97


def test_the_bootstrap_interval_is_close_to_the_normal_one_for_many_values():
    values = np.random.default_rng(1).normal(2.0, 1.0, size=2_000)
    estimate = mean_estimate(values.tolist())
    half = 1.96 * values.std() / np.sqrt(values.size)
    assert estimate.high - estimate.low == pytest.approx(2 * half, rel=0.1)
    assert estimate == mean_estimate(values.tolist())


@pytest.mark.parametrize("n", [3, 5, 9])
def test_intervals_of_few_values_cover_the_truth_19_times_in_20_too(n):
    """A percentile bootstrap covers it about 76, 86 and 90 times in a hundred."""
    generator = np.random.default_rng(2)
    drawn = generator.normal(2.0, 1.0, size=(2_000, n))
    covered = np.mean([(e := mean_estimate(row.tolist())).low <= 2.0 <= e.high for row in drawn])
    assert 0.93 < covered < 0.97
    bytes = generator.integers(80, 120, size=(2_000, n))
    rates = [
        ratio_estimate((row * size).tolist(), size.tolist()) for row, size in zip(drawn, bytes, strict=True)
    ]
    assert 0.93 < np.mean([e.low <= 2.0 <= e.high for e in rates]) < 0.97


def test_intervals_are_students():
    assert student([1.0, 2.0, 3.0]) == pytest.approx((2.0, STUDENT[2] / math.sqrt(3)))
    assert student([1.0])[1] == math.inf


def test_one_number_has_no_interval():
    """One book's bits per byte stood there as [1.23, 1.23], and one answer made a model better."""
    for one in (mean_estimate([-1.25]), ratio_estimate([20.0], [16.0])):
        assert not one.has_interval and str(one) == f"{one.value:.3f} n=1"
    gain = paired_difference([-2.0], [-1.0])
    assert in_words(gain) == "inside the noise" and not gain.above_chance
    assert proportion(1, 1).has_interval, "Wilson's is from 0.21 to 1"


def test_three_answers_that_all_went_up_prove_nothing():
    """They do so once in four by chance, however a bootstrap looks."""
    assert in_words(paired_difference([0.0, 0.0, 0.0], [0.1, 0.9, 0.4])) == "inside the noise"


def test_a_paired_difference_sees_what_unpaired_intervals_hide():
    before = [0.0, 1.0] * 50
    after = [*before]
    after[0:10] = [1.0] * 10  # five items changed, all for the better
    gain = paired_difference(before, after)
    assert gain.value == pytest.approx(0.05)
    assert gain.low > 0
    assert gain.above_chance


def test_no_difference_is_reported_as_none():
    gain = paired_difference([0.0, 1.0, 1.0], [0.0, 1.0, 1.0])
    assert (gain.low, gain.value, gain.high) == (0.0, 0.0, 0.0)
    assert not gain.above_chance


@pytest.mark.parametrize(("n", "k"), [(0, 0), (3, 4), (3, -1)])
def test_impossible_counts_are_refused(n, k):
    with pytest.raises(ValueError, match="successes"):
        proportion(k, n)


def test_exact_match_forgives_case_articles_and_punctuation_only():
    assert exact_match("The 3rd of May.", "3rd of may")
    assert not exact_match("3rd of June", "3rd of May")
    assert not exact_match("12", "-12")


def test_mcnemar_takes_as_many_items_as_there_are():
    """4,600 lost and 4,900 won: the normal approximation gives 0.00215, and the exact sum had taken most of a minute."""
    lost, won = 4_600, 4_900
    found = mcnemar([True] * lost + [False] * won, [False] * lost + [True] * won)
    assert found == pytest.approx(math.erfc((won - lost - 1) / math.sqrt(2 * (lost + won))), rel=0.01)


def test_scores_that_are_all_right_are_not_certain():
    """A bootstrap of equal values has no width; Wilson's interval has, and 10 of 10 reach down to 0.72."""
    assert score_estimate([1.0] * 10) == proportion(10, 10)
    assert score_estimate([0.0] * 10).high > 0.2
    assert score_estimate([1.0, 0.5, 0.0]) == mean_estimate([1.0, 0.5, 0.0]), (
        "halves are no share of right and wrong"
    )
