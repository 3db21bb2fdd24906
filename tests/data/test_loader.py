from __future__ import annotations

import json
from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stockpot.data.corpus import batches
from stockpot.data.corrupt import masked, objective
from stockpot.data.encode import encode
from stockpot.data.loader import FixedBatches, Loader, LoaderConfig
from stockpot.data.records import ChatRecord, TextRecord
from stockpot.data.sources import read_records
from stockpot.data.store import StoreBuilder
from stockpot.errors import ConfigError, DataError
from stockpot.text import Message

CONFIG = LoaderConfig(context=32, micro_batch=4)


def numbered(lengths):
    """Build documents in which every token is different."""
    builder = StoreBuilder("t", 1 << 16)
    at = 1
    for length in lengths:
        builder.add(np.arange(at, at + length, dtype=np.int32))
        at += length
    return builder.build()


def same(one, two) -> bool:
    names = ("ids", "labels", "attention_mask", "segments", "source", "source_mask", "pair_labels")
    for name in names:
        a, b = getattr(one, name), getattr(two, name)
        if (a is None) != (b is None) or (a is not None and not (a.dtype == b.dtype and torch.equal(a, b))):
            return False
    return True


# --- order ---


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(2, 50), min_size=1, max_size=40),
    st.integers(1, 4),
    st.integers(1, 5),
    st.sampled_from(["documents", "alone"]),
    st.integers(0, 3),
)
def test_ranks_share_every_token_of_an_epoch(lengths, world, micro_batch, pack, seed):
    store = numbered(lengths)
    config = LoaderConfig(context=16, micro_batch=micro_batch, pack=pack, epochs=1, seed=seed)
    seen = []
    for rank in range(world):
        for batch in Loader(store, config, rank=rank, world=world):
            seen += batch.ids[batch.attention_mask > 0].tolist()
    assert sorted(seen) == list(range(1, store.tokens + 1))


def test_endless_ranks_walk_in_step_and_see_what_one_rank_sees():
    store = numbered(list(range(2, 60)))
    config = LoaderConfig(context=32, micro_batch=4)
    single = islice(Loader(store, config.model_copy(update={"micro_batch": 12})), 30)
    several = [islice(Loader(store, config, rank=rank, world=3), 30) for rank in range(3)]
    for batch, *parts in zip(single, *several, strict=True):
        assert torch.equal(batch.ids, torch.cat([part.ids for part in parts]))


def test_the_order_depends_on_the_seed_and_on_the_epoch():
    store = numbered([20] * 64)
    per_epoch = -(-64 // 4)

    def order(seed, epoch):
        loader = Loader(store, LoaderConfig(context=20, micro_batch=4, seed=seed))
        return torch.cat([b.ids for b in islice(loader, epoch * per_epoch, (epoch + 1) * per_epoch)]).tolist()

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(1, 0)
    assert order(0, 0) != order(0, 1)
    assert sorted(order(0, 0)) == sorted(order(0, 1))


def test_an_epoch_may_end_inside_a_batch():
    store = numbered([20] * 3)
    loader = Loader(store, LoaderConfig(context=20, micro_batch=8))
    first = next(loader)
    assert first.ids.shape == (8, 20)
    assert loader.epoch == 2
    assert sorted(first.ids[:3, 0].tolist()) == sorted(first.ids[3:6, 0].tolist())


def test_unshuffled_rows_follow_the_documents():
    loader = Loader(numbered([20] * 8), LoaderConfig(context=20, micro_batch=4, shuffle=False))
    assert next(loader).ids[:, 0].tolist() == [1, 21, 41, 61]


# --- shapes ---


def test_masks_have_one_form_throughout_a_run(store):
    forms = {"documents": torch.int32, "alone": torch.bool, "stream": None}
    for pack, dtype in forms.items():
        config = LoaderConfig(context=48, micro_batch=4, pack=pack)
        for batch in islice(Loader(store, config), 20):
            assert (batch.attention_mask.dtype if batch.attention_mask is not None else None) == dtype


def test_positions_may_be_given_instead_of_rows(store):
    assert next(Loader(store, LoaderConfig(context=32, batch_tokens=200))).ids.shape == (6, 32)
    assert next(Loader(store, LoaderConfig(context=32, batch_tokens=5))).ids.shape == (1, 32)
    for batch in islice(Loader(store, LoaderConfig(context=64, batch_tokens=200, pack="alone")), 50):
        assert batch.ids.numel() <= 200 + 8 * len(batch.ids)


def test_padding_of_lone_rows_ends_with_the_longest(store):
    config = LoaderConfig(context=4096, micro_batch=4, pack="alone", epochs=1)
    widths = set()
    for batch in Loader(store, config):
        longest = int(batch.attention_mask.sum(1).max())
        assert longest <= batch.ids.shape[1] < longest + 8
        widths.add(batch.ids.shape[1])
    assert len(widths) > 3


def test_chats_are_loaded_with_loss_on_the_answers(tokenizer, template):
    records = [
        ChatRecord((Message("user", f"stir {i}"), Message("assistant", f"salt {i}"))) for i in range(30)
    ]
    loader = Loader(encode(records, tokenizer, template), LoaderConfig(context=64, micro_batch=2, epochs=1))
    texts = [tokenizer.decode(row[row >= 0].tolist()) for batch in loader for row in batch.labels]
    said = sorted(part for text in texts for part in text.split("<|end|>") if part)
    assert said == sorted(f"salt {i}" for i in range(30))


# --- resuming ---


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(["causal", "masked", "pairs", "span", "prefix"]),
    st.sampled_from(["documents", "alone", "stream"]),
    st.integers(0, 40),
    st.integers(1, 3),
)
def test_a_resumed_loader_gives_the_same_batches_bit_for_bit(store, tokenizer, name, pack, steps, world):
    config = LoaderConfig(context=96, micro_batch=3, pack=pack, seed=5)
    aim = objective(name, tokenizer)
    straight = Loader(store, config, aim, rank=world - 1, world=world)
    for _ in range(steps):
        next(straight)
    state = json.loads(json.dumps(straight.state_dict()))
    resumed = Loader(store, config, aim, rank=world - 1, world=world)
    next(resumed)
    resumed.load_state_dict(state)
    for _ in range(5):
        assert same(next(straight), next(resumed))
    assert straight.state_dict() == resumed.state_dict()


def test_another_number_of_ranks_goes_on_at_the_same_row():
    store = numbered([20] * 200)
    config = LoaderConfig(context=20, micro_batch=4)
    before = Loader(store, config)
    for _ in range(7):
        next(before)
    after = [Loader(store, config, rank=rank, world=2) for rank in range(2)]
    for loader in after:
        loader.load_state_dict(before.state_dict())
    expected = [next(before).ids for _ in range(2)]
    assert [next(loader).ids.tolist() for loader in after] == [ids.tolist() for ids in expected]


@pytest.mark.parametrize(
    ("change", "word"),
    [({"seed": 1}, "seed was 0, now it is 1"), ({"context": 16}, "context"), ({"pack": "stream"}, "pack")],
)
def test_other_settings_are_refused_by_name(store, change, word):
    state = Loader(store, CONFIG).state_dict()
    with pytest.raises(DataError, match=word):
        Loader(store, CONFIG.model_copy(update=change)).load_state_dict(state)


def test_other_data_and_broken_states_are_refused(store, tokenizer):
    loader = Loader(store, CONFIG)
    state = loader.state_dict()
    with pytest.raises(DataError, match="data was"):
        Loader(encode([TextRecord("soup " * 99)], tokenizer), CONFIG).load_state_dict(state)
    with pytest.raises(DataError, match="objective was causal, now it is masked"):
        Loader(store, CONFIG, masked(tokenizer)).load_state_dict(state)
    for broken in ({}, {**state, "epoch": "x"}, {**state, "of": 5}):
        with pytest.raises(DataError, match="cannot be read"):
            loader.load_state_dict(broken)
    for outside in ({**state, "window": 10_000}, {**state, "group": -1}):
        with pytest.raises(DataError, match="outside the data"):
            loader.load_state_dict(outside)


# --- validation ---


def test_validation_is_fixed_and_finite(store, tokenizer):
    for limit in (None, 3):
        fixed = FixedBatches(store, CONFIG, masked(tokenizer), max_batches=limit)
        once, twice = list(fixed), list(fixed)
        assert all(same(a, b) for a, b in zip(once, twice, strict=True))
        assert len(once) == limit or sum(batch.tokens for batch in once) == store.tokens
    mixed = [same(a, b) for a, b in zip(fixed, fixed, strict=True)]
    assert all(mixed), "two walks at once do not disturb each other"


def test_ranks_validate_each_row_once(store):
    tokens = [sum(b.tokens for b in FixedBatches(store, CONFIG, rank=rank, world=3)) for rank in range(3)]
    assert sum(tokens) == store.tokens


# --- refusals ---


def test_too_little_text_is_told(tokenizer):
    store = encode([TextRecord("soup")], tokenizer)
    assert next(Loader(store, CONFIG)).tokens == 4 * store.tokens, "four rows of one document each"
    with pytest.raises(DataError, match="too few for a row of 32 tokens"):
        Loader(store, CONFIG.model_copy(update={"pack": "stream"}))


def test_wrong_settings_are_refused(store):
    with pytest.raises(ConfigError, match="context"):
        LoaderConfig(context=1)
    with pytest.raises(ValueError, match="rank must lie in"):
        Loader(store, CONFIG, rank=2, world=2)


def test_batches_are_one_call_away(tokenizer, tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("stir the pot " * 500, encoding="utf-8")
    batch = next(batches(path, tokenizer, tokens=512, context=64))
    assert batch.ids.shape == (8, 64)
    assert len(list(read_records(path))) == 1
