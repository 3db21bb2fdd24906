"""With a cache, in whatever pieces, a model says what it says without one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from stockpot.model.cache import KVCache
from stockpot.model.transformer import Transformer

Tiny = Callable[..., Transformer]
Ids = Callable[..., Tensor]
NEAR = {"atol": 1e-5, "rtol": 1e-5}  # float32 rounding on values of size about 1
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "none": {"position": "none"},
    "learned": {"position": "learned"},
    "sinusoidal": {"position": "sinusoidal"},
    "alibi": {"position": "alibi"},
    "relative": {"position": "relative"},
    "window": {"window": (3, None), "rope_local_theta": 100.0},
    "softcap": {"attention_softcap": 3.0},
    "all heads": {"kv_heads": 4},
    "one key head": {"kv_heads": 1},
    "learned in windows": {"position": "learned", "window": (4,)},
    "alibi in windows": {"position": "alibi", "window": (4,), "kv_heads": 1},
}
anyhow = pytest.mark.parametrize("choices", VARIANTS.values(), ids=VARIANTS.keys())


@anyhow
@pytest.mark.parametrize("pieces", [(14,), (5, 9), (1, 3, 6, 4), (1,) * 14])
def test_reading_in_pieces_equals_reading_at_once(
    pieces: tuple[int, ...], choices: dict[str, Any], tiny: Tiny, ids: Ids
) -> None:
    model, read = tiny(**choices), ids(3, 14)
    cache = model.new_cache(3, 14)
    parts = [model(part, cache=cache).logits for part in read.split(pieces, 1)]
    torch.testing.assert_close(torch.cat(parts, 1), model(read).logits, **NEAR)
    assert cache.lengths.tolist() == [14] * 3


@anyhow
@pytest.mark.parametrize("side", ["left", "right"])
def test_rows_of_different_lengths_decode_together(
    side: str, choices: dict[str, Any], tiny: Tiny, ids: Ids
) -> None:
    model = tiny(**choices)
    prompts = [ids(1, n, seed=n)[0] for n in (3, 7, 1)]
    following = ids(3, 5, seed=50)
    batch, mask = torch.zeros(3, 7, dtype=torch.long), torch.zeros(3, 7, dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        where = slice(7 - len(prompt), 7) if side == "left" else slice(0, len(prompt))
        batch[row, where], mask[row, where] = prompt, True
    cache = model.new_cache(3, 12)
    first = model(batch, attention_mask=mask, cache=cache).logits
    assert cache.lengths.tolist() == [3, 7, 1]
    assert cache.extent == 7
    later = [model(following[:, i : i + 1], cache=cache).logits for i in range(3)]
    later.append(model(following[:, 3:], cache=cache).logits)
    for row, prompt in enumerate(prompts):
        alone = model(torch.cat([prompt, following[row]])[None]).logits[0]
        together = torch.cat([first[row][mask[row]], *[part[row] for part in later]])
        torch.testing.assert_close(together, alone, **NEAR)


def test_a_row_may_wait_while_others_go_on(tiny: Tiny, ids: Ids) -> None:
    model, read = tiny(), ids(2, 8)
    cache = model.new_cache(2, 8)
    model(read[:, :4], cache=cache)
    for i in range(4, 8):
        only_first = torch.tensor([[True], [False]])
        model(read[:, i : i + 1], attention_mask=only_first, cache=cache)
    assert cache.lengths.tolist() == [8, 4]
    for i in range(4, 8):
        only_second = torch.tensor([[False], [True]])
        late = model(read[:, i : i + 1], attention_mask=only_second, cache=cache).logits
    torch.testing.assert_close(late[1, 0], model(read).logits[1, -1], **NEAR)


def test_a_request_is_read_into_its_own_row(tiny: Tiny, ids: Ids) -> None:
    model = tiny()
    cache = model.new_cache(3, 16)
    first, second, third = ids(1, 6, seed=1), ids(1, 9, seed=2), ids(1, 2, seed=3)
    model(first, cache=cache.rows(0, 1))
    model(second, cache=cache.rows(2, 3))
    assert cache.lengths.tolist() == [6, 0, 9]
    following = ids(3, 3, seed=4)
    step = model(following[:, :1], cache=cache).logits
    torch.testing.assert_close(
        step[2, 0], model(torch.cat([second, following[2:, :1]], 1)).logits[0, -1], **NEAR
    )
    cache.reset([1])
    cache.reset([0])
    model(third, cache=cache.rows(0, 1))
    assert cache.lengths.tolist() == [2, 0, 10]
    step = model(following[:, 1:2], cache=cache).logits
    torch.testing.assert_close(
        step[0, 0], model(torch.cat([third, following[:1, 1:2]], 1)).logits[0, -1], **NEAR
    )
    expected = model(torch.cat([second, following[2:, :2]], 1)).logits[0, -1]
    torch.testing.assert_close(step[2, 0], expected, **NEAR)
    torch.testing.assert_close(step[1, 0], model(following[1:2, 1:2]).logits[0, 0], **NEAR)


def test_a_row_is_read_in_pieces_beside_longer_ones(tiny: Tiny, ids: Ids) -> None:
    model, read = tiny(), ids(1, 9)
    cache = model.new_cache(2, 12)
    model(ids(1, 11, seed=5), cache=cache.rows(1, 2))
    for part in read.split((4, 1, 4), 1):
        last = model(part, cache=cache.rows(0, 1)).logits
    torch.testing.assert_close(last, model(read).logits[:, -4:], **NEAR)


def test_a_finished_row_does_not_use_up_room(tiny: Tiny, ids: Ids) -> None:
    model = tiny()
    cache = model.new_cache(2, 6)
    model(ids(2, 4), cache=cache)
    cache.reset([0])
    model(ids(2, 2), cache=cache)
    cache.reset([1])
    model(ids(2, 4), cache=cache)
    assert cache.lengths.tolist() == [6, 4]
    cache.reset([0])
    for _ in range(2):
        one = torch.tensor([[True], [True]])
        model(ids(2, 1), attention_mask=one, cache=cache)
    assert cache.lengths.tolist() == [2, 6]
    assert cache.extent == 6


def test_a_full_cache_refuses_more_and_keeps_what_it_has(tiny: Tiny, ids: Ids) -> None:
    model = tiny()
    cache = model.new_cache(2, 4)
    with pytest.raises(ValueError, match="holds 4 tokens a row; this call would make it 5"):
        model(ids(2, 5), cache=cache)
    model(ids(2, 4), cache=cache)
    with pytest.raises(ValueError, match="would make it 5"):
        model(ids(2, 1), cache=cache)
    with pytest.raises(ValueError, match="would make it 5"):
        model(ids(2, 1), cache=cache, attention_mask=torch.tensor([[True], [False]]))
    assert cache.lengths.tolist() == [4, 4]


def test_a_cache_goes_back_to_an_earlier_point(tiny: Tiny, ids: Ids) -> None:
    model, read = tiny(), ids(2, 8)
    cache = model.new_cache(2, 8)
    model(ids(2, 7, seed=9), cache=cache)
    cache.truncate(0)
    model(read[:, :6], cache=cache)
    cache.truncate(3)
    torch.testing.assert_close(model(read[:, 3:], cache=cache).logits, model(read).logits[:, 3:], **NEAR)
    cache.truncate(torch.tensor([7, 2]))
    assert cache.lengths.tolist() == [7, 2]
    assert cache.extent == 7
    again = model(torch.stack([read[0, 7], read[1, 2]])[:, None], cache=cache).logits
    torch.testing.assert_close(again[0, 0], model(read).logits[0, 7], **NEAR)
    torch.testing.assert_close(again[1, 0], model(read).logits[1, 2], **NEAR)
    cache.reset()
    torch.testing.assert_close(model(read, cache=cache).logits, model(read).logits, **NEAR)


@pytest.mark.parametrize("shape", ["decoder", "encoder_decoder"])
def test_rows_can_be_reordered_for_beams(shape: str, tiny: Tiny, ids: Ids) -> None:
    model, read, source = tiny(shape), ids(3, 6), ids(3, 5, seed=1)
    given = {"source": source} if shape == "encoder_decoder" else {}
    cache = model.new_cache(3, 8)
    model(read, cache=cache, **given)
    order, following = torch.tensor([2, 0, 2]), ids(3, 1, seed=2)
    cache.reorder(order)
    step = model(following, cache=cache).logits
    given = {"source": source[order]} if given else {}
    whole = model(torch.cat([read[order], following], 1), **given).logits
    torch.testing.assert_close(step, whole[:, -1:], **NEAR)


def test_the_memory_is_read_once_and_kept(tiny: Tiny, ids: Ids) -> None:
    model, read, source = tiny("encoder_decoder"), ids(2, 6), ids(2, 7, seed=1)
    mask = torch.ones(2, 7, dtype=torch.bool)
    mask[1, 4:] = False
    whole = model(read, source=source, source_mask=mask).logits
    cache = model.new_cache(2, 6)
    parts = [model(read[:, :2], source=source, source_mask=mask, cache=cache).logits]
    parts += [model(read[:, i : i + 1], cache=cache).logits for i in range(2, 6)]
    torch.testing.assert_close(torch.cat(parts, 1), whole, **NEAR)


def test_rows_get_memories_of_their_own(tiny: Tiny, ids: Ids) -> None:
    model = tiny("encoder_decoder")
    cache = model.new_cache(3, 8)
    sources = {0: ids(1, 4, seed=10), 2: ids(1, 9, seed=12), 1: ids(1, 6, seed=11)}
    for row, source in sources.items():
        model(ids(1, 2 + row, seed=row), source=source, cache=cache.rows(row, row + 1))
    following = ids(3, 1, seed=3)
    step = model(following, cache=cache).logits
    for row, source in sources.items():
        read = torch.cat([ids(1, 2 + row, seed=row), following[row : row + 1]], 1)
        torch.testing.assert_close(step[row, 0], model(read, source=source).logits[0, -1], **NEAR)


def test_a_prefix_takes_its_place_in_the_cache(tiny: Tiny, ids: Ids) -> None:
    model, read, prefix = tiny(), ids(2, 7), torch.randn(2, 3, 32)
    whole = model(read, prefix=prefix).logits
    cache = model.new_cache(2, 10)
    parts = [model(read[:, :4], prefix=prefix, cache=cache).logits, model(read[:, 4:], cache=cache).logits]
    torch.testing.assert_close(torch.cat(parts, 1), whole, **NEAR)
    assert cache.lengths.tolist() == [10, 10]


def test_a_cache_may_be_smaller_than_the_weights(tiny: Tiny, ids: Ids) -> None:
    model, read = tiny(), ids(2, 8)
    cache = model.new_cache(2, 8, dtype=torch.bfloat16)
    model(read[:, :5], cache=cache)
    rough = model(read[:, 5:], cache=cache).logits
    exact = model(read).logits[:, 5:]
    assert rough.dtype == torch.float32
    assert ((rough - exact).norm() / exact.norm()).item() < 0.02  # keys and values have 8 bits of mantissa


def test_every_call_writes_in_place(tiny: Tiny, ids: Ids) -> None:
    model = tiny()
    cache = model.new_cache(1, 8)
    before = [store.data_ptr() for store in (*cache.keys, *cache.values)]
    model(ids(1, 5), cache=cache)
    model(ids(1, 1), cache=cache)
    assert [store.data_ptr() for store in (*cache.keys, *cache.values)] == before


def test_sizes_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one row"):
        KVCache(1, 0, 1, 4, 8)
    with pytest.raises(ValueError, match="do not exist"):
        KVCache(1, 2, 1, 4, 8).rows(1, 3)
