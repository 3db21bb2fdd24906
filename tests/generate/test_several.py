"""Several tokens in one call of the model: what comes is what single steps give, and it comes in fewer calls."""

from __future__ import annotations

import random

import pytest
import torch

from stockpot.generate import several
from stockpot.generate.engine import Engine
from stockpot.generate.request import Request, Sampling
from stockpot.model.native_decoder import NativeDecoder
from stockpot.model.quantized import quantize

SIZES = {"dim": 64, "heads": 4, "kv_heads": 2, "head_dim": 16, "context": 96}
TEXT = "the cat sat on a mat and one two three naïve dogs ran far away User: nobody 日本語 😀"
WORDS = TEXT.split()


def greedy(**more):
    return Sampling(temperature=0, **more)


@pytest.fixture(params=[8, 4])
def bundle(request, make_bundle):
    made = make_bundle(**SIZES)
    made.model = quantize(made.model, request.param)
    if made.model._native is None:
        pytest.skip("no kernels here")
    return made


@pytest.fixture
def calls(monkeypatch):
    """Collect how many tokens a row gains in each call."""
    found = []
    write = NativeDecoder.write

    def counting(self, ids, cache, going):
        written = write(self, ids, cache, going)
        found.append(len(written))
        return written

    monkeypatch.setattr(NativeDecoder, "write", counting)
    monkeypatch.setattr(several, "MOST_SECONDS", 60.0)  # however slow the machine is today
    return found


def singly(monkeypatch):
    monkeypatch.setattr(several, "MOST_TOKENS", 1)


def chunks_of(engine, requests):
    """Answer requests; return every request's chunks, in the order of the requests."""
    numbers = [engine.submit(request) for request in requests]
    found = {number: [] for number in numbers}
    while engine.pending:
        for chunk in engine.step():
            found[chunk.request].append(chunk)
    return [found[number] for number in numbers]


def some_requests(seed, count):
    """Make requests of many lengths, some with stop texts, least lengths, or settings that need single steps."""
    draw = random.Random(seed)
    requests = []
    for _ in range(count):
        prompt = " ".join(draw.choices(WORDS, k=draw.randint(1, 9)))
        most = draw.randint(1, 60)
        more = {"stop": draw.choice([(), ("e",), ("th", "on"), ("xyz",)]), "max_tokens": most}
        more["min_tokens"] = draw.choice([0, 0, draw.randint(0, most)])
        if draw.random() < 0.1:
            more |= draw.choice([{"repetition_penalty": 1.3}, {"logprobs": 2}, {"lookup": 4}])
        sampling = greedy(**more) if draw.random() < 0.85 else Sampling(seed=draw.randint(0, 99), **more)
        requests.append(Request(prompt, sampling))
    return requests


def test_one_request_comes_in_few_calls(bundle, calls):
    answer = Engine(bundle).generate(["the cat"], greedy(max_tokens=33, min_tokens=33))[0]
    assert answer.tokens == 33
    assert calls == [16, 16]  # the first token comes of reading


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("slots", [1, 5])
def test_every_chunk_is_that_of_single_steps(make_bundle, calls, monkeypatch, seed, slots):
    torch.manual_seed(seed)
    made = make_bundle(**SIZES, window=(None, 20))
    made.model.embed.weight.data.normal_(std=0.7)
    made.model = quantize(made.model, 8 if seed % 2 else 4)
    requests = some_requests(seed, 12)
    found = chunks_of(Engine(made, slots=slots), requests)
    assert any(taken > 1 for taken in calls) or made.model._native is None
    singly(monkeypatch)
    calls.clear()
    assert found == chunks_of(Engine(made, slots=slots), requests)
    assert not calls


def test_a_stop_text_ends_one_row_and_not_the_others(bundle, calls, monkeypatch):
    prompts = ["the cat", "one two three", "naïve", "User: who"]
    plain = Engine(bundle).generate(prompts, greedy(max_tokens=40, min_tokens=40))
    stop = next(piece for piece in plain[1].text[4:].split() if piece)
    requests = [Request(prompt, greedy(max_tokens=40, min_tokens=40)) for prompt in prompts]
    requests[1] = Request(prompts[1], greedy(max_tokens=40, min_tokens=40, stop=(stop,)))
    engine = Engine(bundle, slots=4)
    found = chunks_of(engine, requests)
    assert found[1][-1].finish_reason == "stop"
    for row in (0, 2, 3):
        assert tuple(id for chunk in found[row] for id in chunk.ids) == plain[row].ids
    assert max(calls) > 1
    again = engine.generate([prompts[1]], greedy(max_tokens=40, min_tokens=40))[0]
    assert again.ids == plain[1].ids  # what was kept of the row that ended early is right
    singly(monkeypatch)
    assert found == chunks_of(Engine(bundle, slots=4), requests)


def test_the_context_is_filled_to_its_end(bundle, calls):
    prompt = [5] * 60
    answer = Engine(bundle).generate([prompt], greedy(max_tokens=500))[0]
    assert answer.finish_reason in ("length", "stop")
    long = Engine(bundle).generate([prompt], greedy(max_tokens=500, min_tokens=36))[0]
    assert (long.finish_reason, long.tokens) == ("length", 36)
    assert sum(calls) >= 35


def test_ids_that_end_a_text_end_the_call(bundle, calls, monkeypatch):
    whole = Engine(bundle).generate(["the cat"], greedy(max_tokens=40, min_tokens=40))[0]
    ender = next(id for place, id in enumerate(whole.ids) if place >= 5 and id not in whole.ids[:place])
    engine = Engine(bundle)
    engine._stop_ids = frozenset({ender})
    calls.clear()
    answer = engine.generate(["the cat"], greedy(max_tokens=40))[0]
    assert answer.ids == whole.ids[: whole.ids.index(ender) + 1]
    assert answer.finish_reason == "stop"
    assert sum(calls) == answer.tokens - 1
    late = greedy(max_tokens=40, min_tokens=30)
    held = engine.generate(["the cat"], late)[0]
    assert ender not in held.ids[:29]
    assert held.ids[: len(answer.ids) - 1] == answer.ids[:-1]
    singly(monkeypatch)
    assert held == engine.generate(["the cat"], late)[0]


def test_a_cancelled_request_leaves_the_others_as_they_are(bundle, calls):
    alone = Engine(bundle).generate(["one two", "naïve"], greedy(max_tokens=50, min_tokens=50))
    engine = Engine(bundle, slots=3)
    numbers = [
        engine.submit(Request(text, greedy(max_tokens=50, min_tokens=50))) for text in ("the", "one two")
    ]
    found = {number: [] for number in numbers}
    for step in range(200):
        if step == 2:
            engine.cancel(numbers[0])
            numbers.append(engine.submit(Request("naïve", greedy(max_tokens=50, min_tokens=50))))
            found[numbers[2]] = []
        for chunk in engine.step():
            assert step < 2 or chunk.request != numbers[0]
            found[chunk.request] += chunk.ids
        if not engine.pending:
            break
    assert tuple(found[numbers[1]]) == alone[0].ids
    assert tuple(found[numbers[2]]) == alone[1].ids
    assert max(calls) > 1


def test_nobody_who_waits_for_a_free_place_waits_longer(bundle, calls):
    engine = Engine(bundle, slots=2)
    engine.submit(Request("the cat", greedy(max_tokens=50, min_tokens=50)))
    engine.step()
    engine.step()
    assert calls == [16]
    engine.submit(Request("one two", greedy(max_tokens=50, min_tokens=50)))
    chunks = engine.step()
    assert len(chunks) == 2  # one token, and the first one of the request that was read
    assert calls == [16]


def test_a_step_takes_no_longer_than_the_nearest_deadline(bundle, calls):
    engine = Engine(bundle, clock=lambda: 100.0)
    engine.submit(Request("the cat", greedy(max_tokens=50, min_tokens=50, timeout_s=1e-9)))
    engine.step()
    engine.step()
    assert calls == [1]


def test_a_slow_model_writes_one_token_a_step(bundle, calls, monkeypatch):
    monkeypatch.setattr(several, "MOST_SECONDS", 0.0)
    engine = Engine(bundle)
    engine.submit(Request("the cat", greedy(max_tokens=4, min_tokens=4)))
    steps = []
    while engine.pending:
        steps.append([chunk.ids for chunk in engine.step()])
    assert [len(step) for step in steps] == [1, 1, 1, 1]
    assert calls == [1, 1]  # the last token is a single step


def test_the_first_of_equal_ids_is_taken(make_bundle, calls, monkeypatch):
    made = make_bundle(**SIZES)
    made.model.decoder.norm.weight.data.fill_(0.0)  # all logits are 0
    made.model = quantize(made.model, 8)
    sampling = greedy(max_tokens=20, min_tokens=3)
    several_at_once = Engine(made).generate(["the cat"], sampling)[0].ids
    assert calls or made.model._native is None
    singly(monkeypatch)
    assert several_at_once == Engine(made).generate(["the cat"], sampling)[0].ids


def test_a_stream_still_gives_every_token(bundle, calls):
    chunks = list(Engine(bundle).stream("the cat", greedy(max_tokens=30, min_tokens=30)))
    assert max(calls) > 1
    whole = Engine(bundle).generate(["the cat"], greedy(max_tokens=30, min_tokens=30))[0]
    assert "".join(chunk.text for chunk in chunks) == whole.text
    assert len(chunks) > 10  # those whose text is not whole yet wait for the next


@pytest.mark.parametrize("choice", [{"logit_softcap": 3.0}, {"logit_scale": 0.5}, {"logit_bias": True}])
def test_logits_that_are_changed_afterwards_are_written_one_by_one(make_bundle, calls, choice):
    made = make_bundle(**SIZES, **choice)
    made.model = quantize(made.model, 8)
    answer = Engine(made).generate(["the cat"], greedy(max_tokens=12, min_tokens=12))[0]
    assert answer.tokens == 12
    assert not calls


def test_no_token_leaves_a_call_in_which_numbers_ended(bundle, calls):
    engine = Engine(bundle)
    engine.submit(Request("the cat", greedy(max_tokens=40, min_tokens=40)))
    assert [chunk.error for chunk in engine.step()] == [None]
    bundle.model.decoder.norm.weight.data.fill_(float("nan"))
    (last,) = engine.step()
    assert (last.text, last.finish_reason) == ("", "error")
    assert "no numbers" in str(last.error)
    assert calls and engine.pending == 0
