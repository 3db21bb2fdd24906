"""Beginnings that several requests share are computed once, and no answer changes."""

from __future__ import annotations

import pytest
import torch

from stockpot.generate.engine import Engine
from stockpot.generate.prefixes import LEAST, Prefixes, shared_beginning, shared_length
from stockpot.generate.request import Request, Sampling
from stockpot.model.quantized import quantize

BLOCK = "the cat sat on the mat and the dog ran far away and the cat sat on one two three four five six " * 2
ENDS = ["seven", "the dog", "naïve", "one two"]
PROMPTS = [BLOCK + end for end in ENDS]
GREEDY = Sampling(temperature=0, max_tokens=12)


@pytest.fixture(params=["float32", "int8"])
def any_bundle(request, make_bundle):
    bundle = make_bundle(dim=64, heads=4, kv_heads=2, head_dim=16, context=128)
    if request.param == "int8":
        bundle.model = quantize(bundle.model, 8)
    return bundle


def block_length(bundle):
    return shared_beginning([bundle.encode(prompt) for prompt in PROMPTS])


def test_shared_beginnings_are_measured():
    assert shared_length([], [1]) == 0
    assert shared_length([1, 2], [1, 2, 3]) == 2
    assert shared_length([1, 2, 9, 4], [1, 2, 3, 4]) == 2
    assert shared_beginning([[1, 2, 3], [1, 2], [1, 4]]) == 1


def test_a_block_is_read_once_one_request_after_another(any_bundle, count_calls):
    shared = block_length(any_bundle)
    assert shared > LEAST
    without = Engine(any_bundle, prefix_mib=0)
    wanted = [without.generate([prompt], GREEDY)[0] for prompt in PROMPTS]
    engine = Engine(any_bundle)
    found = []
    for at, prompt in enumerate(PROMPTS):
        with count_calls(any_bundle.model) as calls:
            found += engine.generate([prompt], GREEDY)
        assert calls[0] == len(any_bundle.encode(prompt)) - (shared if at else 0)
    assert [one.ids for one in found] == [one.ids for one in wanted]


def test_a_block_is_read_once_when_all_requests_come_together(any_bundle, count_calls):
    wanted = Engine(any_bundle, prefix_mib=0).generate(PROMPTS, GREEDY)
    with count_calls(any_bundle.model) as calls:
        found = Engine(any_bundle).generate(PROMPTS, GREEDY)
    assert [one.ids for one in found] == [one.ids for one in wanted]
    read = sum(calls) - sum(len(one.ids) - 1 for one in found)
    longest = max(len(any_bundle.encode(prompt)) for prompt in PROMPTS)
    assert read < longest + 4 * (longest - block_length(any_bundle)) + 1  # padding counts as well


def test_a_conversation_goes_on_where_it_was(any_bundle, count_calls):
    engine = Engine(any_bundle)
    first = any_bundle.encode(BLOCK)
    answer = list(engine.generate([first], GREEDY)[0].ids)
    longer = first + answer + any_bundle.encode("one two")
    with count_calls(any_bundle.model) as calls:
        found = engine.generate([longer], GREEDY)[0]
    assert calls[0] == len(longer) - (len(first) + len(answer) - 1)  # the last id of an answer is never run
    assert found.ids == Engine(any_bundle, prefix_mib=0).generate([longer], GREEDY)[0].ids


def test_a_running_request_lends_its_beginning(any_bundle, count_calls):
    wanted = [Engine(any_bundle, prefix_mib=0).generate([prompt], GREEDY)[0].ids for prompt in PROMPTS[:2]]
    engine = Engine(any_bundle)
    numbers = [engine.submit(Request(PROMPTS[0], GREEDY))]
    found = {numbers[0]: ()}
    for chunk in engine.step():
        found[chunk.request] += chunk.ids
    numbers.append(engine.submit(Request(PROMPTS[1], GREEDY)))
    found[numbers[1]] = ()
    with count_calls(any_bundle.model) as calls:
        for chunk in engine.step():
            found[chunk.request] += chunk.ids
    assert sum(calls) == 1 + len(any_bundle.encode(PROMPTS[1])) - block_length(any_bundle)
    while engine.pending:
        for chunk in engine.step():
            found[chunk.request] += chunk.ids
    assert list(found.values()) == wanted


def test_scores_read_a_block_once(any_bundle, count_calls):
    pairs = [(prompt, " far away") for prompt in PROMPTS]
    wanted = Engine(any_bundle, prefix_mib=0).score(pairs)
    engine = Engine(any_bundle)
    with count_calls(any_bundle.model) as first:
        found = engine.score(pairs)
    with count_calls(any_bundle.model) as again:
        assert engine.score(pairs) == found
    for one, other in zip(found, wanted, strict=True):
        assert one.log_prob == pytest.approx(other.log_prob, abs=1e-4)
        assert one.is_greedy == other.is_greedy
    assert first[0] == block_length(any_bundle)
    assert sum(again) == sum(first) - first[0]


def test_memory_is_bounded_and_the_oldest_goes_first(bundle):
    cache = bundle.model.new_cache(1, 90)
    each = sum(store[0, :, :1].nbytes for store in (*cache.keys, *cache.values))
    store = Prefixes(bundle.model, 70 * each)
    first, second, third = ([at] * 30 for at in range(3))
    for ids in (first, second):
        store.keep(ids, cache, 0)
    assert store.nbytes == 60 * each
    assert store.find([*first, 9])[1] == 30  # used last, so the second one is the oldest
    store.keep(third, cache, 0)
    assert store.nbytes == 60 * each
    assert [store.find([*ids, 9])[1] for ids in (first, second, third)] == [30, 0, 30]
    store.keep([5] * 90, cache, 0)  # too long: what fits of it
    assert store.nbytes == 70 * each
    assert store.find([5] * 90)[1] == 70


def test_what_a_longer_one_holds_is_not_kept_twice(bundle):
    cache = bundle.model.new_cache(1, 90)
    store = Prefixes(bundle.model, 1 << 20)
    store.keep(list(range(20)), cache, 0)
    store.keep(list(range(40)), cache, 0)
    size = store.nbytes
    store.keep(list(range(30)), cache, 0)
    assert store.nbytes == size
    assert store.find(list(range(60)))[1] == 40


def test_changed_weights_empty_the_store(make_bundle):
    bundle = make_bundle()
    engine = Engine(bundle)
    engine.generate([BLOCK], GREEDY)
    with torch.no_grad():
        bundle.model.embed.weight.neg_()
    assert engine.generate([BLOCK], GREEDY)[0].ids == Engine(bundle).generate([BLOCK], GREEDY)[0].ids


def test_models_that_read_both_ways_keep_nothing(make_bundle, seq2seq):
    for bundle in (make_bundle(attends="prefix"), seq2seq):
        assert not Prefixes(bundle.model, 1 << 20).is_on
        assert Engine(bundle).generate(PROMPTS[:2], GREEDY)[0].ids


def test_a_long_prompt_of_a_prefix_decoder_is_read_whole_beside_others(make_bundle, monkeypatch):
    """Read in pieces it could not see its own end."""
    bundle = make_bundle(attends="prefix")
    wanted = Engine(bundle).generate([BLOCK], GREEDY)[0].ids
    monkeypatch.setattr("stockpot.generate.scheduler.BESIDE_TOKENS", 5)
    engine = Engine(bundle)
    engine.submit(Request("far", GREEDY))
    engine.step()
    number = engine.submit(Request(BLOCK, GREEDY))
    found = ()
    while engine.pending:
        found += tuple(id for chunk in engine.step() if chunk.request == number for id in chunk.ids)
    assert found == wanted


def test_prompts_that_were_written_behind_are_not_read_again_to_be_scored(any_bundle, count_calls):
    prompts = [any_bundle.encode(end + " " + BLOCK) for end in ENDS]
    pairs = [(prompt, any_bundle.encode("far away")) for prompt in prompts]
    wanted = Engine(any_bundle, prefix_mib=0).score(pairs)
    engine = Engine(any_bundle)
    engine.generate(prompts, GREEDY)
    with count_calls(any_bundle.model) as calls:
        found = engine.score(pairs)
    for one, other in zip(found, wanted, strict=True):
        assert one.log_prob == pytest.approx(other.log_prob, abs=1e-4)
        assert one.gap == pytest.approx(other.gap, abs=1e-4)
    assert sum(calls) == 4 * len(pairs[0][1])  # the prompt's last id and the answer without its own
