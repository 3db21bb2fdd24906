from __future__ import annotations

import pytest

from stockpot.village.dice import Dice
from stockpot.village.wording import (
    Noun,
    Wording,
    a_or_an,
    capital,
    count,
    listed,
    say,
    small_initial,
    wordings,
)


@pytest.fixture
def dice() -> Dice:
    return Dice(0, "wording").at(0)


def test_fields_are_filled_in(dice):
    assert Wording("{a} found {a_thing}.")(dice, {"a": "Mara", "a_thing": "a key"}) == "Mara found a key."


def test_every_alternative_comes_up(dice):
    way = Wording("[One day|Once], {a} [left|]")
    assert {way(dice, {"a": "she"}) for _ in range(100)} == {
        "One day, she left",
        "One day, she ",
        "Once, she left",
        "Once, she ",
    }


def test_a_percent_sign_is_a_percent_sign(dice):
    assert Wording("5 % of {n}")(dice, {"n": "ten"}) == "5 % of ten"


@pytest.mark.parametrize("text", ["{a", "a}", "[a|b", "a|b", "[a [b|c]]"])
def test_unmatched_brackets_are_errors(text):
    with pytest.raises(ValueError, match="unmatched"):
        Wording(text)


def test_a_missing_field_is_an_error(dice):
    with pytest.raises(KeyError, match="a"):
        Wording("{a}")(dice, {})


def test_filling_needs_a_wording_without_alternatives():
    assert Wording("{a}!").fill({"a": "Hi"}) == "Hi!"
    with pytest.raises(ValueError, match="alternatives"):
        Wording("[a|b]").fill({})


def test_what_is_said_begins_with_a_capital(dice):
    assert say(dice, wordings("{employer} is old."), {"employer": "the Red Mill"}) == "The Red Mill is old."


@pytest.mark.parametrize(
    ("phrase", "expected"),
    [
        ("apple", "an apple"),
        ("pear", "a pear"),
        ("umbrella", "an umbrella"),
        ("useful box", "a useful box"),
        ("hour", "an hour"),
        ("one-eyed cat", "a one-eyed cat"),
    ],
)
def test_articles_follow_the_sound(phrase, expected):
    assert a_or_an(phrase) == expected


def test_nouns_know_their_plural():
    assert Noun.of("apple") == Noun("apple", "apples", "an apple")
    assert Noun.of("knife/knives") == Noun("knife", "knives", "a knife")
    assert count(1, Noun.of("goose/geese")) == "1 goose"
    assert count(3, Noun.of("goose/geese")) == "3 geese"


def test_lists_have_commas_and_one_and():
    assert listed(["a"]) == "a"
    assert listed(["a", "b"]) == "a and b"
    assert listed(["a", "b", "c"]) == "a, b and c"


def test_capitals_leave_the_rest_alone():
    assert capital("the Red Mill") == "The Red Mill"
    assert small_initial("The Red Mill") == "the Red Mill"
