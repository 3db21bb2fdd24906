"""Steps begun before the last ids were looked at change no answer: whoever ends, leaves, joins or shares a prompt meanwhile."""

from __future__ import annotations

import random
from unittest.mock import patch

import pytest
import torch

from stockpot.generate.engine import Engine
from stockpot.generate.recorded import Begun, Recorder
from stockpot.generate.request import Request, Sampling

PROMPTS = [
    "the cat",
    "one two three four five",
    "é",
    "who is there? the dog and the cat",
    "far",
    "the cat sat on",
]


class Stepping(Recorder):
    """Does on a CPU what a recorder does on a card, with the model itself, and counts."""

    def __init__(self, model, *, compiles=False):
        super().__init__(model, compiles=compiles)
        self.is_on, self.steps = model.config.shape == "decoder", 0

    def step(self, ids, rows):
        self.steps += 1
        return self._model(ids, cache=rows.view(0, len(ids)), last=1).logits[:, -1]


@pytest.fixture
def begins():
    with patch("stockpot.generate.scheduler.Recorder", Stepping):
        yield


def requests(seed):
    chosen = random.Random(seed)
    kinds = [
        {"temperature": 0},
        {"temperature": 0, "logprobs": 2},
        {"seed": chosen.randrange(100), "top_p": 0.9},
        {"seed": chosen.randrange(100), "top_k": 5, "repetition_penalty": 1.3},
        {"temperature": 0, "stop": ("a", "ö")},
        {"temperature": 0, "lookup": 4},
    ]
    return [
        Request(
            chosen.choice(PROMPTS), Sampling(max_tokens=chosen.randrange(1, 20), **kinds[at % len(kinds)])
        )
        for at in range(14 if seed % 2 else 10)
    ]


def play(bundle, seed):
    """Submit requests a few at a time, let some of them leave; return what every one of them got."""
    chosen = random.Random(seed)
    engine = Engine(bundle, slots=3)
    asked, got, gone = requests(seed), {}, set()
    numbers = []
    while len(numbers) < len(asked) or engine.pending:
        for request in asked[len(numbers) : len(numbers) + chosen.randrange(3)]:
            numbers.append(engine.submit(request))
            got[numbers[-1]] = []
        for chunk in engine.step():
            got[chunk.request].append(chunk)
        if numbers and chosen.random() < 0.1:
            leaves = chosen.choice(numbers)
            engine.cancel(leaves)
            gone.add(leaves)
    told = {}
    for at, number in enumerate(numbers):
        if number not in gone:
            chunks = got[number]
            ids = [id for chunk in chunks for id in chunk.ids]
            text = "".join(chunk.text for chunk in chunks)
            told[at] = tuple(ids), text, chunks[-1].finish_reason
    return told


@pytest.mark.parametrize("seed", range(12))
def test_answers_are_the_same(seed, bundle, begins):
    found = play(bundle, seed)
    assert len(found) > 3
    for at, (ids, text, reason) in found.items():
        request = requests(seed)[at]
        with patch("stockpot.generate.scheduler.Recorder", Recorder):
            (alone,) = Engine(bundle).generate([request.prompt], request.sampling)
        assert (ids, text, reason) == (alone.ids, alone.text, alone.finish_reason)


def test_a_lone_answer_is_run_once_too_often_at_most(bundle, begins):
    engine = Engine(bundle, prefix_mib=0)
    sampling = Sampling(temperature=0, max_tokens=12, min_tokens=12)
    assert engine.generate(["the cat"], sampling)[0].tokens == 12
    assert (
        engine._scheduler._recorder.steps == 11
    )  # the prompt gives the first; nothing is begun behind the last


def test_the_next_step_is_begun_before_ids_are_looked_at(bundle, begins):
    engine = Engine(bundle)
    engine.submit(Request("the cat", Sampling(temperature=0, max_tokens=12, min_tokens=12)))
    engine.step()
    assert engine._scheduler._recorder.steps == 1
    fetch, order = Stepping.fetch, []

    def watched(self, ids):
        arrived = fetch(self, ids)
        return lambda: order.append(self.steps) or arrived()

    with patch.object(Stepping, "fetch", watched):
        engine.step()
    assert order == [2]


def test_rows_of_a_begun_step_may_move():
    logits = torch.arange(5.0)[:, None]
    begun = Begun(logits, 4)
    assert begun.logits.squeeze(1).tolist() == [0, 1, 2, 3]
    begun.free(1)
    assert (begun.count, begun.logits.squeeze(1).tolist()) == (3, [0, 3, 2])
    begun.free(2)
    assert begun.logits.squeeze(1).tolist() == [0, 3]
    begun.free(0)
    assert begun.logits.squeeze(1).tolist() == [3]
