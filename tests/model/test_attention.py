"""Attention's own promises."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stockpot.model.attention import View, attend, attend_openly
from stockpot.model.transformer import Transformer

Tiny = Callable[..., Transformer]
Ids = Callable[..., Tensor]
NEAR = {"atol": 1e-5, "rtol": 1e-5}


def heads(seq: int, keys: int, kv_heads: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(2, 4, seq, 8), torch.randn(2, kv_heads, keys, 8), torch.randn(2, kv_heads, keys, 8)


def test_two_words_by_hand() -> None:
    queries = torch.tensor([[[[1.0, 0.0], [0.0, 1.0]]]])
    keys = torch.tensor([[[[math.log(3), 0.0], [0.0, 0.0]]]])
    values = torch.tensor([[[[4.0, 0.0], [0.0, 8.0]]]])
    # first word, looking at both: softmax(ln 3, 0) = (3/4, 1/4); second word: softmax(0, 0) = (1/2, 1/2)
    expected = torch.tensor([[[[3.0, 2.0], [2.0, 4.0]]]])
    torch.testing.assert_close(attend(queries, keys, values, View(), scale=1.0), expected)
    out, weights = attend_openly(queries, keys, values, View(causal=True), scale=1.0)
    torch.testing.assert_close(weights, torch.tensor([[[[1.0, 0.0], [0.5, 0.5]]]]))
    torch.testing.assert_close(out[0, 0, 0], torch.tensor([4.0, 0.0]))


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("view", ["all", "causal", "mask", "bias"])
def test_the_fast_way_equals_the_open_way(view: str, kv_heads: int) -> None:
    queries, keys, values = heads(6, 6, kv_heads)
    masks = {
        "all": View(),
        "causal": View(causal=True),
        "mask": View(mask=torch.rand(2, 1, 6, 6).add(torch.eye(6)) > 0.6),
        "bias": View(mask=torch.randn(1, 4, 6, 6)),
    }
    fast = attend(queries, keys, values, masks[view], scale=0.3)
    torch.testing.assert_close(fast, attend_openly(queries, keys, values, masks[view], scale=0.3)[0], **NEAR)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("view", ["all", "mask", "bias"])
def test_one_query_takes_the_same_way(view: str, kv_heads: int) -> None:
    queries, keys, values = heads(1, 5, kv_heads)
    real = torch.tensor([[True] * 5, [True, True, False, False, False]])[:, None, None]
    masks = {"all": View(), "mask": View(mask=real), "bias": View(mask=torch.randn(2, 4, 1, 5))}
    fast = attend(queries, keys, values, masks[view], scale=0.3)
    torch.testing.assert_close(fast, attend_openly(queries, keys, values, masks[view], scale=0.3)[0], **NEAR)


def test_grouped_heads_equal_all_heads_with_repeated_keys(tiny: Tiny, ids: Ids) -> None:
    grouped, full = tiny(kv_heads=2), tiny(kv_heads=4)
    weights = grouped.state_dict()
    for name in [name for name in weights if name.endswith("qkv.weight")]:
        queries, keys, values = weights[name].split((32, 16, 16))
        repeated = [part.view(2, 8, 32).repeat_interleave(2, 0).reshape(32, 32) for part in (keys, values)]
        weights[name] = torch.cat([queries, *repeated])
    full.load_state_dict(weights)
    torch.testing.assert_close(full(ids(2, 9)).logits, grouped(ids(2, 9)).logits, **NEAR)


def test_a_window_hides_what_lies_before_it(tiny: Tiny, ids: Ids) -> None:
    model, read = tiny(layers=1, window=(4,)), ids(1, 12)
    changed = read.clone()
    changed[0, 3] = (changed[0, 3] + 1) % 61
    same = torch.isclose(model(read).logits, model(changed).logits, **NEAR).all(-1)[0]
    assert same.tolist() == [True] * 3 + [False] * 4 + [True] * 5  # positions 3 to 6 see position 3
    torch.testing.assert_close(tiny(window=(12,))(read).logits, tiny()(read).logits, **NEAR)


def test_an_encoders_window_looks_both_ways(tiny: Tiny, ids: Ids) -> None:
    model = tiny("encoder", layers=1, window=(3,))
    with model.watch() as seen:
        model(ids(1, 8))
    index = torch.arange(8)
    assert torch.equal(seen.attention[0][0, 0] > 0, (index[:, None] - index).abs() < 3)


def test_windows_alternate_over_the_layers(tiny: Tiny, ids: Ids) -> None:
    model = tiny(layers=5, window=(2, 2, None))
    with model.watch() as seen:
        model(ids(1, 8))
    reach = [int((weights[0, 0, 7] > 0).sum()) for weights in seen.attention]
    assert reach == [2, 2, 8, 2, 2]


def test_capped_scores_never_pass_the_cap() -> None:
    queries, keys, values = heads(5, 5)
    scores = (queries @ keys.repeat_interleave(2, 1).transpose(-1, -2)) * 9
    weights = attend_openly(queries, keys, values, View(), scale=9.0, softcap=2.0)[1]
    torch.testing.assert_close(weights, (2 * torch.tanh(scores / 2)).softmax(-1))
    free, wide = (
        attend_openly(queries, keys, values, View(), scale=1.0, softcap=cap)[0] for cap in (None, 1e4)
    )
    torch.testing.assert_close(wide, free, **NEAR)


def test_a_cap_acts_in_the_model_and_vanishes_when_wide(tiny: Tiny, ids: Ids) -> None:
    read = ids(2, 9)
    plain = tiny()(read).logits
    torch.testing.assert_close(tiny(attention_softcap=1e4)(read).logits, plain, **NEAR)
    assert not torch.allclose(tiny(attention_softcap=0.1)(read).logits, plain, atol=1e-3)


def test_normalised_queries_and_keys_do_not_care_about_size(tiny: Tiny, ids: Ids) -> None:
    model, read = tiny(qk_norm="head"), ids(1, 8)
    before = model(read).logits
    with torch.no_grad():
        for layer in model.decoder.layers:
            layer.attention.qkv.weight[:48] *= 7  # queries and keys; values stay
    torch.testing.assert_close(model(read).logits, before, atol=1e-4, rtol=1e-4)  # norm_eps weighs less now


def test_a_row_that_sees_nothing_stays_finite() -> None:
    queries, keys, values = heads(3, 4)
    nothing = View(mask=torch.zeros(2, 1, 3, 4, dtype=torch.bool))
    assert bool(attend(queries, keys, values, nothing, scale=1.0).isfinite().all())
    assert bool(attend_openly(queries, keys, values, nothing, scale=1.0)[0].isfinite().all())


def test_a_fully_padded_source_gives_finite_answers(tiny: Tiny, ids: Ids) -> None:
    model, mask = tiny("encoder_decoder"), torch.tensor([[True] * 5, [False] * 5])
    out = model(ids(2, 4), source=ids(2, 5), source_mask=mask)
    out.logits.sum().backward()
    assert bool(out.logits.isfinite().all())
    assert all(bool(value.grad.isfinite().all()) for value in model.parameters() if value.grad is not None)


def test_attention_dropout_keeps_the_mean() -> None:
    queries, keys, values = heads(4, 4)
    torch.manual_seed(0)
    exact = attend_openly(queries, keys, values, View(), scale=0.3)[0]
    runs = [attend_openly(queries, keys, values, View(), scale=0.3, dropout=0.2)[0] for _ in range(4000)]
    assert F.mse_loss(torch.stack(runs).mean(0), exact).item() < 1e-3
