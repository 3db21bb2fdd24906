from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stockpot.data.batch import IGNORED
from stockpot.data.pack import Alone, Documents, Stream, best_fit, cut, fill
from stockpot.data.store import StoreBuilder

LENGTHS = st.lists(st.integers(1, 80), min_size=1, max_size=60)


def numbered(lengths):
    """Build documents in which every token is different."""
    builder = StoreBuilder("t", 1 << 16)
    at = 1
    for length in lengths:
        builder.add(np.arange(at, at + length, dtype=np.int32))
        at += length
    return builder.build()


def rows_of(epoch):
    return [row for window in range(epoch.windows) for group in epoch.groups(window) for row in group]


def plans(lengths, context, seed):
    lengths = np.asarray(lengths, np.int64)
    return [
        Documents(lengths, context, seed),
        Alone(lengths, context, seed, rows=3),
        Alone(lengths, context, seed, rows=1, tokens=50),
    ]


@settings(max_examples=150, deadline=None)
@given(LENGTHS, st.integers(2, 40), st.one_of(st.none(), st.tuples(st.integers(0, 9), st.integers(0, 9))))
def test_every_token_stands_once_in_an_epoch_with_its_right_label(lengths, context, seed):
    store = numbered(lengths)
    last = set(np.cumsum(lengths).tolist())
    for plan in plans(lengths, context, seed):
        rows = rows_of(plan)
        ids, labels, documents = fill(store, rows, context, pad_id=0)
        real = documents > 0
        assert sorted(ids[real].tolist()) == list(range(1, store.tokens + 1))
        assert (ids[~real] == 0).all()
        assert (labels[~real] == IGNORED).all()
        for token, label in zip(ids[real].tolist(), labels[real].tolist(), strict=True):
            assert label == (IGNORED if token in last else token + 1), "no label crosses a document's end"


@settings(max_examples=150, deadline=None)
@given(LENGTHS, st.integers(2, 40), st.integers(0, 9))
def test_documents_are_numbered_from_one_without_a_gap_and_padding_comes_last(lengths, context, seed):
    store = numbered(lengths)
    _, _, documents = fill(store, rows_of(Documents(store.lengths, context, (seed, 0))), context, 0)
    for row in documents:
        inside = row[row > 0]
        assert row[: len(inside)].tolist() == inside.tolist()
        assert set(np.diff(inside).tolist()) <= {0, 1}
        assert inside[0] == 1


@settings(max_examples=200, deadline=None)
@given(LENGTHS, st.integers(2, 40), st.one_of(st.none(), st.integers(0, 9)))
def test_only_documents_that_do_not_fit_are_cut_and_into_few_pieces(lengths, context, seed):
    rng = None if seed is None else np.random.default_rng(seed)
    pieces = cut(np.asarray(lengths, np.int64), context, rng)
    for document, length in enumerate(lengths):
        mine = pieces.documents == document
        few = -(-length // context)
        assert few <= mine.sum() <= (few if few < 8 or rng is None else few + 1)
        starts, stops = pieces.starts[mine], pieces.stops[mine]
        assert starts[0] == 0
        assert stops[-1] == length
        assert (starts[1:] == stops[:-1]).all()
        assert (stops - starts > 0).all()
        assert (stops - starts <= context).all()


def test_the_cuts_of_a_long_text_fall_elsewhere_in_each_epoch():
    lengths = np.array([10_000], np.int64)
    firsts = {int(cut(lengths, 64, np.random.default_rng(seed)).stops[0]) for seed in range(40)}
    assert len(firsts) > 20


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 32), max_size=120))
def test_best_fit_puts_each_item_in_one_row_and_needs_few_rows(lengths):
    rows = best_fit(lengths, 32)
    assert sorted(item for row in rows for item in row) == list(range(len(lengths)))
    assert all(sum(lengths[item] for item in row) <= 32 for row in rows)
    lower = -(-sum(lengths) // 32)
    assert len(rows) <= max(lower, 11 / 9 * lower + 4), "the bound of best-fit decreasing (Johnson 1973)"


def test_best_fit_by_hand():
    assert best_fit([5, 3, 7, 2, 1], 8) == [[2, 4], [0, 1], [3]]
    assert best_fit([], 8) == []


def test_rows_of_ordinary_documents_are_nearly_full():
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(5.5, 1, 20_000), 2, 4000).astype(np.int64)
    rows = rows_of(Documents(lengths, 512, (0, 0)))
    assert lengths.sum() / (len(rows) * 512) > 0.99


def test_a_plan_is_a_function_of_its_seed():
    lengths = np.arange(1, 3000) % 97 + 1
    for make in (
        lambda seed: Documents(lengths, 64, seed),
        lambda seed: Alone(lengths, 64, seed, rows=4),
        lambda seed: Stream(lengths, 64, seed),
    ):
        one, two, other = make((1, 0)), make((1, 0)), make((1, 1))
        assert one.windows > 1
        assert one.groups(1) == two.groups(1)
        assert one.groups(0) == two.groups(0), "windows may be asked for in any order"
        assert rows_of(one) != rows_of(other)


def test_rows_of_like_length_stand_together():
    lengths = np.random.default_rng(0).integers(2, 200, 5000)
    plan = Alone(lengths, 200, (0, 0), rows=16)
    padding = 0
    for window in range(plan.windows):
        for group in plan.groups(window):
            sizes = [stop - start for row in group for _, start, stop in row]
            padding += max(sizes) * len(sizes) - sum(sizes)
    assert padding < 0.05 * lengths.sum()


def test_groups_of_positions_hold_as_many_rows_as_fit():
    lengths = np.random.default_rng(0).integers(2, 200, 3000)
    plan = Alone(lengths, 200, (0, 0), rows=1, tokens=400)
    for window in range(plan.windows):
        for group in plan.groups(window):
            assert max(stop - start for row in group for _, start, stop in row) * len(group) <= 400


@settings(max_examples=100, deadline=None)
@given(LENGTHS, st.integers(2, 40), st.one_of(st.none(), st.tuples(st.integers(0, 9), st.integers(0, 9))))
def test_a_stream_is_full_and_repeats_nothing(lengths, context, seed):
    store = numbered(lengths)
    rows = rows_of(Stream(store.lengths, context, seed))
    ids, labels, documents = fill(store, rows, context, 0)
    assert (documents > 0).all()
    assert len(set(ids.ravel().tolist())) == ids.size
    assert store.tokens - ids.size < 2 * context
    last = set(np.cumsum(lengths).tolist())
    for token, label in zip(ids.ravel().tolist(), labels.ravel().tolist(), strict=True):
        assert label == (IGNORED if token in last else token + 1)


def test_tokens_that_do_not_count_have_no_label():
    builder = StoreBuilder("t", 100)
    builder.add(np.arange(1, 6, dtype=np.int32), np.array([False, False, False, True, True]))
    store = builder.build()
    ids, labels, _ = fill(store, [[(0, 0, 3)], [(0, 3, 5)]], 4, 0)
    assert ids.tolist() == [[1, 2, 3, 0], [4, 5, 0, 0]]
    assert labels.tolist() == [[IGNORED, IGNORED, 4, IGNORED], [5, IGNORED, IGNORED, IGNORED]]


@pytest.mark.parametrize("context", [2, 3, 64])
def test_a_document_as_long_as_the_context_is_one_piece(context):
    for rng in (None, np.random.default_rng(0)):
        lengths = np.array([context, context - 1], np.int64)
        assert cut(lengths, context, rng).stops.tolist() == lengths.tolist()
