"""Batches made ready by a thread, and rows found by trying."""

from __future__ import annotations

import threading

import pytest
import torch
from training import settings

from stockpot.train import loop
from stockpot.train.ahead import Ahead
from stockpot.train.room import most_rows


class Numbers:
    def __init__(self, stop=1000):
        self.place, self.stop = 0, stop

    def __next__(self):
        if self.place == self.stop:
            raise StopIteration
        self.place += 1
        return self.place

    def state_dict(self):
        return {"place": self.place}

    def load_state_dict(self, state):
        self.place = state["place"]


def test_the_place_told_is_that_of_the_batch_handed_out():
    ahead = Ahead(Numbers(), pins=False)
    assert ahead.state_dict() == {"place": 0}
    assert [next(ahead) for _ in range(5)] == [1, 2, 3, 4, 5]
    assert ahead.state_dict() == {"place": 5}
    ahead.load_state_dict({"place": 2})
    assert next(ahead) == 3
    ahead.close()


def test_the_end_and_errors_come_when_it_is_their_turn():
    ahead = Ahead(Numbers(stop=3), pins=False)
    assert list(ahead) == [1, 2, 3]
    assert list(ahead) == []
    ahead.close()

    class Broken(Numbers):
        def __next__(self):
            if self.place == 2:
                raise ValueError("broken")
            return super().__next__()

    broken = Ahead(Broken(), pins=False)
    assert [next(broken), next(broken)] == [1, 2]
    with pytest.raises(ValueError, match="broken"):
        next(broken)


def test_training_ends_the_thread_and_leaves_the_source_behind_its_last_batch(
    monkeypatch, stream, tiny_model, tiny_loss
):
    monkeypatch.setattr(loop, "_ahead_of", lambda batches, _: Ahead(batches, pins=False))  # as on a GPU
    batches, before = stream(), threading.active_count()
    loop.fit(tiny_model(), batches, tiny_loss, settings(steps=3))
    assert threading.active_count() == before
    assert batches.state_dict() == {"place": 3}


def tried(fits, speeds, most):
    """Choose rows on a pretended device: what fits, and rows a second by rows."""
    now, seen = [0.0], []

    def step(rows):
        seen.append(rows)
        if rows > fits:
            raise torch.OutOfMemoryError("pretended")
        now[0] += rows / speeds(rows)

    found = most_rows(step, most, device=torch.device("cpu"), clock=lambda: now[0])
    return found, max(seen)


def test_rows_double_until_memory_ends():
    assert tried(fits=20, speeds=lambda rows: rows, most=64) == (16, 32)


def test_rows_double_until_they_no_longer_pay():
    assert tried(fits=1000, speeds=lambda rows: min(rows, 8), most=64) == (8, 16)


def test_no_more_rows_than_a_step_has():
    assert tried(fits=1000, speeds=lambda rows: rows, most=6) == (6, 6)
    assert tried(fits=0, speeds=lambda rows: rows, most=6)[0] == 1
