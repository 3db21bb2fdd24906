"""Places and orders of tasks: against the published table of Tenney et al. 2019, by hand, and where nothing can be said."""

from __future__ import annotations

import numpy as np
import pytest

from stockpot.judge.probe_score import (
    Tally,
    centre_of_gravity,
    draw_weights,
    expected_layer,
    located,
    online_code,
    order_of,
    scores_of,
)

# BERT-base uncased, F1 of probes that see layers 0 … l (l = 0 … 12), printed by the authors' notebook for arXiv:1905.05950
# (nyu-mll/jiant, commit 57076f3, probing/analysis_bertlayer_ACL_camera_ready.ipynb). Expected layers: MISSION row 11.
PUBLISHED = {
    "pos": (
        1.76,
        "88.3952 93.4826 94.9644 95.4243 95.9719 96.4355 96.3890 96.4161 96.5560 96.4781 96.5859 96.4020 96.4782",
    ),
    "constituents": (
        2.38,
        "75.1997 80.5569 83.0987 84.8947 86.0373 86.4235 86.7595 86.7625 87.2055 87.0436 86.9797 87.2785 87.2441",
    ),
    "dependencies": (
        2.52,
        "85.1990 90.2369 91.2977 92.5571 93.6569 94.0952 94.6465 94.8954 95.1667 95.2115 95.0951 95.3245 95.2172",
    ),
    "entities": (
        2.42,
        "89.8686 93.3274 94.2983 94.4166 95.1909 95.4043 95.5909 95.6814 95.8536 95.9136 95.9984 95.9326 96.0298",
    ),
    "roles": (
        2.59,
        "79.4559 85.2654 86.5578 87.7683 89.1407 90.3564 90.3386 91.0484 90.9998 90.7155 90.4659 90.8396 91.0886",
    ),
    "coreference": (
        3.62,
        "80.0073 82.5248 84.2960 85.1926 86.9400 87.5822 88.2827 88.8928 90.2742 90.3805 90.5657 90.2825 90.1648",
    ),
    "relations": (
        4.16,
        "58.9330 66.0471 68.6298 70.8558 73.9742 74.6635 77.2542 78.2458 80.2260 81.1677 81.6441 83.2685 82.8699",
    ),
}
# a task on which deeper layers are no better: the formula alone would say layer 23.9 of 12
NO_GAIN = (
    "56.1118 59.2018 56.6392 57.2738 54.5226 54.7192 56.9444 55.7178 58.5143 57.7197 57.4822 59.1484 55.2180"
)


def numbers(text):
    return [float(one) for one in text.split()]


@pytest.mark.parametrize("task", PUBLISHED)
def test_the_published_scores_give_the_published_expected_layers(task):
    expected, scores = PUBLISHED[task]
    assert round(expected_layer(numbers(scores)), 2) == expected


def test_without_a_gain_there_is_no_expected_layer():
    assert expected_layer(numbers(NO_GAIN)) is None
    assert expected_layer([0.5, 0.5, 0.5]) is None


def test_layers_may_be_left_out_and_losses_count_against():
    assert expected_layer([0.0, 0.5, 1.0], layers=[0, 4, 8]) == pytest.approx(6.0)
    assert expected_layer([0.0, 1.2, 1.0]) == pytest.approx((1.2 * 1 - 0.2 * 2) / 1.0)
    with pytest.raises(ValueError, match="at least two"):
        expected_layer([0.5])


def test_centre_of_gravity_is_the_mean_layer():
    assert centre_of_gravity([0.0, 0.0, 1.0]) == 2.0
    assert centre_of_gravity([1.0, 1.0], layers=[0, 6]) == 3.0


def test_an_online_code_sends_the_first_block_plainly():
    bits, compression = online_code([np.log(2) * 10], [4, 20], classes=4)
    assert bits == pytest.approx(4 * 2 + 10)
    assert compression == pytest.approx(48 / 18)


def planted(rng, share, passages=200, targets=5):
    """Targets of which probes of each layer label these shares rightly, two seeds alike."""
    owners = np.repeat(np.arange(passages), targets)
    rows = [rng.random(len(owners)) < p for _ in range(2) for p in share]
    return Tally.of(np.array(rows), owners, seeds=2)


def test_resampling_gives_the_sample_first_and_an_interval_around_the_truth():
    rng = np.random.default_rng(0)
    tally = planted(rng, [0.5, 0.7, 0.9])
    scores = scores_of(tally, draw_weights(200), 0)
    assert scores[0] == pytest.approx(tally.right.sum(-1).mean(0) / 1000)
    low, high = np.quantile(scores[1:], [0.025, 0.975], axis=0)
    assert (low < [0.5, 0.7, 0.9]).all() and (high > [0.5, 0.7, 0.9]).all()
    place, drawn = located(scores, (0, 1, 2))
    assert place.low < 1.5 < place.high and place.without_gain == 0 and drawn.shape == (2001,)


def test_a_gain_inside_the_noise_is_not_resolved():
    place, _ = located(
        scores_of(planted(np.random.default_rng(1), [0.5, 0.6, 0.505]), draw_weights(200)), (0, 1, 2)
    )
    assert place.value is None and place.without_gain > 0.05 and str(place) == "not resolved"


def test_an_order_has_a_certainty_for_every_pair():
    rng = np.random.default_rng(2)
    early, late = np.full(101, 1.0) + rng.normal(0, 0.1, 101), np.full(101, 3.0) + rng.normal(0, 0.1, 101)
    same = np.full(101, 1.0) + rng.normal(0, 0.1, 101)
    order = order_of({"a": early, "b": same, "c": late}, ("a", "b", "c", "d"))
    shares = {(a, b): share for a, b, share in order.pairs}
    assert order.tasks == ("a", "b", "c")
    assert shares["a", "c"] == shares["b", "c"] == 1.0 and 0.2 < shares["a", "b"] < 0.8
    assert order.whole == shares["a", "b"] and order.tau_low == pytest.approx(1 / 3) and order.tau_high == 1.0
    assert order_of({"a": early}, ("a", "b")) is None


def test_a_task_without_a_place_in_a_resample_is_not_counted_there():
    first, second = np.array([1.0, 1.0, np.nan]), np.array([2.0, 2.0, 2.0])
    assert order_of({"a": first, "b": second}, ("a", "b")).pairs == (("a", "b", 1.0),)
