from __future__ import annotations

from dataclasses import dataclass

import pytest

from stockpot.train.feed import Feed


@dataclass
class Counted:
    tokens: int


def steps(sizes, tokens):
    feed, found = Feed([Counted(size) for size in sizes], tokens), []
    while step := [batch.tokens for batch, _ in feed.step()]:
        found.append(step)
    return found


@pytest.mark.parametrize(
    ("sizes", "tokens", "expected"),
    [
        ([10, 10, 10, 10], 20, [[10, 10], [10, 10]]),
        ([9, 9, 9, 9], 20, [[9, 9], [9, 9]]),  # a little padding does not cost a third micro-batch
        ([6, 6, 6, 6], 20, [[6, 6, 6], [6]]),
        ([50, 50], 20, [[50], [50]]),
        ([1, 30, 1, 30], 20, [[1, 30], [1, 30]]),
    ],
)
def test_a_step_comes_as_near_to_its_tokens_as_micro_batches_allow(sizes, tokens, expected):
    assert steps(sizes, tokens) == expected


@dataclass
class Deciding(Counted):
    ends_step: bool


def test_batches_may_say_themselves_where_a_step_ends():
    feed = Feed([Deciding(5, False), Deciding(500, True), Deciding(1, True)], 20)
    assert [[batch.tokens for batch, _ in feed.step()] for _ in range(3)] == [[5, 500], [1], []]
