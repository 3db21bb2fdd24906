"""Settings are checked before any work."""

from __future__ import annotations

import pytest

from stockpot.errors import ConfigError
from stockpot.generate.request import Completion, Sampling


def test_the_defaults_are_plain_drawing():
    sampling = Sampling()
    assert (sampling.max_tokens, sampling.temperature, sampling.n, sampling.stop) == (128, 1.0, 1, ())
    assert not sampling.is_greedy


def test_one_stop_text_need_not_be_a_list():
    assert Sampling(stop="\n").stop == ("\n",)


@pytest.mark.parametrize("settings", [{"temperature": 0}, {"top_k": 1}])
def test_temperature_zero_or_a_single_candidate_is_greedy(settings):
    assert Sampling(**settings).is_greedy


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"temperature": -1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"min_p": 2}, "min_p"),
        ({"top_k": 0}, "top_k"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"n": 0}, "n is 0"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**64}, "seed"),
        ({"logprobs": 21}, "logprobs"),
        ({"stop": ("a", "")}, "empty stop"),
        ({"min_tokens": 9, "max_tokens": 8}, "min_tokens"),
        ({"logit_bias": {-1: 2.0}}, "logit_bias"),
        ({"beams": 2, "length_penalty": 1000.0}, "length_penalty"),
        ({"beams": 2, "length_penalty": -1000.0}, "length_penalty"),
        ({"logit_bias": {1: float("inf")}}, "logit_bias"),
        ({"beams": 2, "n": 3}, "2 beams"),
        ({"beams": 2, "top_p": 0.5}, "top_p"),
        ({"beams": 2, "logprobs": 1}, "logprobs"),
        ({"temprature": 1}, "temperature"),
    ],
)
def test_impossible_settings_are_refused_by_name(settings, told):
    with pytest.raises(ConfigError, match=told):
        Sampling(**settings)


def test_what_other_programs_write_for_off_is_left_out():
    given = {
        "temperature": None,
        "top_k": 0,
        "top_p": 0.9,
        "max_length": 20,
        "eos_token_id": [1, 2],
        "do_sample": True,
    }
    assert Sampling.suggested(given) == Sampling(top_p=0.9)


def test_do_sample_false_means_greedy():
    assert Sampling.suggested({"do_sample": False, "temperature": 0.6}).is_greedy


def test_a_completion_counts_its_tokens():
    assert Completion("ab", (1, 2, 3), "stop", 4).tokens == 3
