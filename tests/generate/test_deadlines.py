"""Nobody waits longer than asked: deadlines, cancelling, and long prompts beside short answers."""

from __future__ import annotations

import pytest

from stockpot.errors import ConfigError
from stockpot.generate.engine import Engine
from stockpot.generate.request import Request, Sampling

LONG = "the cat sat on the mat and the dog ran far away one two three"


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def never_ending(**more):
    return Sampling(temperature=0, max_tokens=60, min_tokens=60, **more)


def test_a_request_is_cut_when_its_time_is_up(bundle):
    clock = Clock()
    engine = Engine(bundle, clock=clock)
    number = engine.submit(Request("the cat", never_ending(timeout_s=5)))
    written = []
    for _ in range(4):
        written += engine.step()
        clock.now += 1
    assert all(chunk.finish_reason is None for chunk in written)
    clock.now += 1
    last = engine.step()
    assert [(chunk.request, chunk.finish_reason) for chunk in last] == [(number, "timeout")]
    assert engine.pending == 0
    ids = tuple(id for chunk in written for id in chunk.ids)
    whole = Engine(bundle).generate(["the cat"], never_ending())[0]
    assert ids == whole.ids[:4]
    assert "".join(chunk.text for chunk in [*written, *last]) == bundle.tokenizer.decode(
        ids, skip_special=True
    )


def test_waiting_counts(bundle):
    clock = Clock()
    engine = Engine(bundle, slots=1, clock=clock)
    first = engine.submit(Request("the cat", never_ending()))
    second = engine.submit(Request("one two", never_ending(timeout_s=2)))
    engine.step()
    clock.now += 3
    reasons = {chunk.request: chunk.finish_reason for chunk in engine.step()}
    assert reasons == {first: None, second: "timeout"}


def test_others_go_on_unchanged(bundle):
    clock = Clock()
    engine = Engine(bundle, clock=clock)
    wanted = Engine(bundle).generate(["one two"], never_ending())[0].ids
    engine.submit(Request("the cat", never_ending(timeout_s=3)))
    number = engine.submit(Request("one two", never_ending()))
    found = ()
    while engine.pending:
        found += tuple(id for chunk in engine.step() if chunk.request == number for id in chunk.ids)
        clock.now += 1
    assert found == wanted


def test_generate_and_stream_report_it(bundle):
    clock = Clock()
    engine = Engine(bundle, clock=clock)
    chunks = []
    for chunk in engine.stream("the cat", never_ending(timeout_s=3)):
        chunks.append(chunk)
        clock.now += 1
    assert chunks[-1].finish_reason == "timeout"
    late = Engine(bundle, clock=lambda: clock.now)
    clock_steps = iter(range(100))
    late = Engine(bundle, clock=lambda: float(next(clock_steps)))
    assert late.generate(["the cat"], never_ending(timeout_s=4))[0].finish_reason == "timeout"


@pytest.mark.parametrize("value", [0, -1, float("inf"), float("nan")])
def test_a_time_out_is_a_positive_number(value):
    with pytest.raises(ConfigError, match="timeout_s"):
        Sampling(timeout_s=value)


def test_cancelling_frees_the_slot_for_the_next_step(bundle):
    engine = Engine(bundle, slots=1)
    first = engine.submit(Request("the cat", never_ending()))
    engine.step()
    second = engine.submit(Request("one two", never_ending()))
    engine.cancel(first)
    assert {chunk.request for chunk in engine.step()} == {second}


def test_a_long_prompt_holds_nobody_up(bundle, monkeypatch, count_calls):
    monkeypatch.setattr("stockpot.generate.scheduler.BESIDE_TOKENS", 4)
    engine = Engine(bundle, prefix_mib=0)
    short = engine.submit(Request("far", never_ending()))
    engine.step()
    engine.submit(Request(LONG, never_ending()))
    length = len(bundle.encode(LONG))
    steps = 0
    while engine._scheduler._reading is not None or steps == 0:
        with count_calls(bundle.model) as calls:
            chunks = engine.step()
        assert short in {chunk.request for chunk in chunks}  # it gets a token in every step
        assert sum(calls) <= 1 + 4
        steps += 1
    assert steps == -(-length // 4)
