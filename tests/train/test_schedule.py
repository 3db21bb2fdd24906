from __future__ import annotations

import math

import pytest

from stockpot.train.schedule import schedule_factor

COMMON = {"steps": 100, "warmup_steps": 10, "decay_steps": 40, "final": 0.0}


@pytest.mark.parametrize("kind", ["constant", "linear", "cosine", "warmup-stable-decay"])
def test_every_shape_rises_linearly_and_does_not_waste_its_first_step(kind):
    assert [schedule_factor(step, kind=kind, **COMMON) for step in (0, 4, 9)] == [0.1, 0.5, 1.0]


def test_values_by_hand():
    assert schedule_factor(59, kind="warmup-stable-decay", **COMMON) == 1.0
    assert schedule_factor(79, kind="warmup-stable-decay", **COMMON) == pytest.approx(0.5)
    assert schedule_factor(54, kind="linear", **COMMON) == pytest.approx(0.5)
    assert schedule_factor(54, kind="cosine", **COMMON) == pytest.approx(0.5 * (1 + math.cos(math.pi / 2)))


@pytest.mark.parametrize("kind", ["constant", "linear", "cosine", "warmup-stable-decay"])
def test_a_run_of_one_step_learns(kind):
    assert schedule_factor(0, kind=kind, steps=1, warmup_steps=0, decay_steps=0, final=0.0) == 1.0


@pytest.mark.parametrize("kind", ["linear", "cosine", "warmup-stable-decay"])
def test_the_last_step_stands_at_the_final_factor(kind):
    assert schedule_factor(99, kind=kind, **{**COMMON, "final": 0.1}) == pytest.approx(0.1)
