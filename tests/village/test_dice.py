from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stockpot.village.dice import Dice, draw_on, side_of


def test_draws_depend_on_seed_stream_and_index_only():
    def draw(seed: int, stream: str, index: int) -> list[int]:
        return [Dice(seed, stream).at(index).below(1000) for _ in range(5)]

    first = draw(0, "a", 0)
    assert first == draw(0, "a", 0)
    assert first != draw(1, "a", 0)
    assert first != draw(0, "b", 0)
    assert first != draw(0, "a", 1)


def test_an_index_restarts_the_draws_wherever_the_dice_were():
    dice = Dice(3, "somewhere")
    expected = dice.at(7).random()
    for _ in range(10):
        dice.random()
    assert dice.at(7).random() == expected


def test_the_first_draws_are_the_same_in_every_python():
    dice = Dice(0, "test").at(5)
    assert [dice.below(100) for _ in range(8)] == [80, 88, 60, 59, 71, 28, 20, 11]
    assert dice.sample(range(10), 4) == [7, 4, 2, 9]


def test_draws_are_even():
    dice = Dice(0, "even").at(0)
    seen = Counter(dice.below(5) for _ in range(10_000))
    assert set(seen) == set(range(5))
    assert all(abs(n - 2000) < 200 for n in seen.values())  # five standard deviations


def test_between_includes_both_ends():
    dice = Dice(0, "between").at(0)
    assert {dice.between(2, 4) for _ in range(200)} == {2, 3, 4}


@given(st.integers(0, 2**32), st.lists(st.integers(), unique=True, max_size=40), st.data())
def test_a_sample_holds_different_things_of_the_whole(seed, things, data):
    count = data.draw(st.integers(0, len(things)))
    drawn = Dice(seed, "sample").at(0).sample(things, count)
    assert len(drawn) == len(set(drawn)) == count
    assert set(drawn) <= set(things)


@given(st.integers(0, 2**32), st.lists(st.integers(), max_size=20))
def test_shuffling_keeps_everything(seed, things):
    assert sorted(Dice(seed, "shuffle").at(0).shuffled(things)) == sorted(things)


def test_a_sample_cannot_be_larger_than_the_whole():
    with pytest.raises(ValueError, match="cannot draw 3 of 2 things"):
        Dice(0, "x").at(0).sample("ab", 3)


def test_one_text_in_eight_belongs_to_val():
    sides = Counter(side_of(f"text number {i}") for i in range(8000))
    assert 850 < sides["val"] < 1150


def test_draws_on_a_side_belong_to_it():
    dice = Dice(0, "side").at(0)
    for side in ("train", "val"):
        assert side_of(draw_on(side, lambda: str(dice.below(10_000)), str)) == side


def test_too_little_variety_is_an_error_not_a_hang():
    only = next(text for text in map(str, range(100)) if side_of(text) == "train")
    with pytest.raises(RuntimeError, match="vary too little"):
        draw_on("val", lambda: only, str)
