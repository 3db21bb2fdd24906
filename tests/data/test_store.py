from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stockpot.data.store import StoreBuilder, TokenStore, id_type
from stockpot.errors import DataError


def build(documents, vocab_size=1000, fingerprint="tokenizer") -> TokenStore:
    builder = StoreBuilder(fingerprint, vocab_size)
    for document in documents:
        builder.add(np.asarray(document, np.int32))
    return builder.build()


def contents(store: TokenStore) -> list[list[int]]:
    return [store.read(d).tolist() for d in range(store.documents)]


def test_documents_are_given_back_as_views():
    store = build([[1, 2, 3], [4], [5, 6]])
    assert contents(store) == [[1, 2, 3], [4], [5, 6]]
    assert store.read(0, 1).tolist() == [2, 3]
    assert store.read(0, 1, 2).tolist() == [2]
    assert store.read(1, 0, 99).tolist() == [4]
    assert (store.documents, store.tokens) == (3, 6)
    assert store.read(2).base is not None


def test_ids_take_two_bytes_when_they_fit():
    assert (id_type(65_536).itemsize, id_type(65_537).itemsize) == (2, 4)
    assert build([[65_535]], 65_536).read(0).tolist() == [65_535]
    assert build([[70_000]], 70_001).read(0).tolist() == [70_000]


def test_a_large_store_has_several_parts():
    documents = [np.arange(n, dtype=np.int32) for n in (1_500_000, 1_500_000, 1_500_000, 7)]
    store = build(documents, vocab_size=2_000_000)
    assert len(store.parts) == 2
    assert store.part.tolist() == [0, 0, 0, 1]
    assert all((store.read(d) == document).all() for d, document in enumerate(documents))


def test_the_fingerprint_is_that_of_content_and_tokenizer():
    same = build([[1, 2], [3]]).fingerprint
    assert build([[1, 2], [3]]).fingerprint == same
    others = [
        build([[1], [2, 3]]),
        build([[1, 2], [4]]),
        build([[1, 2], [3]], fingerprint="other"),
        *build([[1, 2, 3], [4, 5, 6]]).split(0.3),
    ]
    assert len({same, *(other.fingerprint for other in others)}) == 6


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=50), st.floats(0.01, 0.6), st.integers(0, 5))
def test_what_is_held_out_is_not_trained_on_and_nothing_is_lost(lengths, share, seed):
    ends = np.cumsum(lengths)
    documents = [list(range(end - length, end)) for end, length in zip(ends, lengths, strict=True)]
    store = build(documents, 4000)
    try:
        training, held_out = store.split(share, seed=seed)
    except DataError:
        assert store.tokens * share < 2 or max(lengths) - int(store.tokens * share) < 2
        return
    both = [token for part in (training, held_out) for document in contents(part) for token in document]
    assert sorted(both) == list(range(store.tokens))
    assert held_out.tokens <= 1.5 * max(1, int(store.tokens * share)) + 64
    assert training.tokens > 0


def test_the_end_of_a_single_text_is_held_out():
    training, held_out = build([list(range(100))]).split(0.1)
    assert contents(training) == [list(range(90))]
    assert contents(held_out) == [list(range(90, 100))]


def test_the_same_seed_holds_out_the_same():
    store = build([[d] * 10 for d in range(100)])
    assert contents(store.split(0.1, seed=3)[1]) == contents(store.split(0.1, seed=3)[1])
    assert contents(store.split(0.1, seed=3)[1]) != contents(store.split(0.1, seed=4)[1])


def test_too_little_to_hold_out_is_told():
    with pytest.raises(DataError, match="too small to hold out"):
        build([[1, 2, 3]]).split(0.1)
