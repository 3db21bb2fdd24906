"""A stack's pass in one call: what torch computes layer by layer, whatever is read together, and only where it is the same."""

from __future__ import annotations

import copy

import pytest
import torch

from stockpot.model import native_stack
from stockpot.model.adapters import LoRA, attach
from stockpot.model.config import decoder, encoder
from stockpot.model.native_stack import layer_by_layer, reads
from stockpot.model.quantized import quantize
from stockpot.model.transformer import Transformer
from stockpot.native.texts import TextKernels, text_kernels

SIZES = {"layers": 2, "dim": 64, "heads": 4, "vocab_size": 100, "context": 256, "zero_init": False}
SHAPES = {
    "as Llama": {"kv_heads": 2, "qk_norm": None},
    "norms of queries and keys": {"kv_heads": 1},
    "as GPT-2": {
        "position": "learned", "norm": "layer", "norm_bias": True, "ffn": "gelu_tanh", "ffn_bias": True, "qkv_bias": True,
        "out_bias": True, "qk_norm": None,
    },
    "windows": {"window": (None, 4)},
    "half of a head rotated, wide heads": {"rope_fraction": 0.5, "head_dim": 48},
    "norms behind the sums": {"norm_place": "post", "final_norm": False, "ffn": "relu2"},
    "no positions, gated GELU": {"position": "none", "ffn": "geglu", "ffn_bias": True, "ffn_dim": 80},
}  # fmt: skip
NEAR = 2e-5  # of hidden states of size 1
KERNELS = text_kernels()
pytestmark = pytest.mark.skipif(KERNELS is None, reason="the kernels could not be compiled here")


@pytest.fixture(autouse=True)
def runs(monkeypatch):
    """Let calls go through the kernels, fast ones or not; note how many tokens each runs."""
    ran = []
    run = native_stack._run

    def noting(stack, kernels, hidden, texts, cache):
        ran.append(hidden.shape[0])
        run(stack, kernels, hidden, texts, cache)

    monkeypatch.setattr(native_stack, "LEAST_STATES", 1)
    monkeypatch.setattr(native_stack, "_kernels", lambda kind: KERNELS)
    monkeypatch.setattr(native_stack, "_run", noting)
    return ran


def build(make=decoder, **choices):
    torch.manual_seed(0)
    model = Transformer(make(**{**SIZES, **choices})).eval()
    with torch.no_grad():
        for param in model.parameters():
            param.mul_(2.0).add_(0.1 * torch.randn_like(param)) if param.ndim > 1 else param.add_(
                0.1 * torch.randn_like(param)
            )
    return model


def draw(*shape):
    return torch.randint(100, shape, generator=torch.Generator().manual_seed(1))


def hidden_both_ways(model, ids, **how):
    """Return hidden states by the kernels, which must have run, and by torch."""
    with torch.inference_mode():
        ours = model(ids, **how).hidden
        with layer_by_layer():
            return ours, model(ids, **how).hidden


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("batch, seq", [(3, 50), (1, 200), (70, 1), (1, 1)])
def test_hidden_states_are_those_of_the_layers(runs, shape, batch, seq):
    ours, wanted = hidden_both_ways(build(**SHAPES[shape]), draw(batch, seq))
    assert runs == [batch * seq]
    torch.testing.assert_close(ours, wanted, rtol=0, atol=NEAR)


@pytest.mark.parametrize("choices", [{}, {"window": (None, 5)}, {"position": "learned"}])
def test_an_encoder_looks_to_both_sides(runs, choices):
    ours, wanted = hidden_both_ways(build(encoder, **choices), draw(3, 50))
    assert runs == [150]
    torch.testing.assert_close(ours, wanted, rtol=0, atol=NEAR)


@pytest.mark.parametrize("shape", SHAPES)
def test_padding_on_either_side_is_not_read(runs, shape):
    real = torch.ones(3, 50, dtype=torch.bool)
    real[0, 30:], real[1] = False, True
    real[2, :10] = False
    ours, wanted = hidden_both_ways(build(**SHAPES[shape]), draw(3, 50), attention_mask=real)
    assert runs == [int(real.sum())]
    torch.testing.assert_close(ours[real], wanted[real], rtol=0, atol=NEAR)
    assert torch.isfinite(ours).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_documents_and_branches_see_only_their_own(runs, shape):
    documents, branches = torch.ones(2, 50, dtype=torch.int64), torch.zeros(2, 50, dtype=torch.int64)
    documents[:, 20:], documents[:, 33:], documents[0, 45:] = 2, 3, 0
    branches[:, 10:20], branches[:, 25:28], branches[:, 28:33] = 1, 1, 2
    model, ids, real = build(**SHAPES[shape]), draw(2, 50), documents != 0
    for how in ({}, {"branches": branches}):
        ours, wanted = hidden_both_ways(model, ids, attention_mask=documents, **how)
        torch.testing.assert_close(ours[real], wanted[real], rtol=0, atol=NEAR)
    branches[:, 20:] = 3
    ours, wanted = hidden_both_ways(model, ids, branches=branches)
    torch.testing.assert_close(ours, wanted, rtol=0, atol=NEAR)
    assert runs == [95, 95, 100]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_cache_is_read_and_filled(runs, shape):
    model, ids = build(**SHAPES[shape]), draw(3, 40)
    real = torch.ones(3, 40, dtype=torch.bool)
    real[0, 25:], real[2, :7] = False, False

    def go_on():
        cache = model.new_cache(3, 128)
        first = model(ids, attention_mask=real, cache=cache).hidden[real]
        second = model(ids.flip(0), cache=cache).hidden
        third = model(ids[:, :5], attention_mask=real[:, 20:25], cache=cache).hidden[real[:, 20:25]]
        held = [
            store[row, :, : cache.lengths[row]] for store in (*cache.keys, *cache.values) for row in range(3)
        ]
        return [first, second, third, *held, cache.lengths.clone()]

    with torch.inference_mode():
        ours = go_on()
        assert len(runs) == 3
        with layer_by_layer():
            wanted = go_on()
    for got, expected in zip(ours, wanted, strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=NEAR)


def test_a_call_without_a_token_is_left_to_torch(runs):
    model, ids = build(), draw(2, 5)
    nothing = torch.zeros(2, 5, dtype=torch.bool)
    ours, wanted = hidden_both_ways(model, ids, attention_mask=nothing)
    assert torch.equal(ours, wanted)
    assert model(ids[:, :0]).hidden.shape == (2, 0, 64)
    with torch.inference_mode():
        assert model(ids[:, :0]).hidden.shape == (2, 0, 64)
    nothing[1, 2:4] = True
    ours, wanted = hidden_both_ways(model, ids, attention_mask=nothing)
    assert runs == [2]
    torch.testing.assert_close(ours[nothing], wanted[nothing], rtol=0, atol=NEAR)


def test_a_text_is_the_same_alone_and_among_others_and_with_any_number_of_threads():
    model, ids = build(), draw(40, 60)
    threads = torch.get_num_threads()
    try:
        with torch.inference_mode():
            together = model(ids).hidden
            apart = torch.cat([model(row[None]).hidden for row in ids])
            assert torch.equal(together, apart)
            for count in (1, 3):
                torch.set_num_threads(count)
                assert torch.equal(model(ids).hidden, together)
                assert torch.equal(model(ids[:1]).hidden, together[:1])
    finally:
        torch.set_num_threads(threads)


def test_a_change_of_the_weights_is_seen_at_once():
    model, ids = build(), draw(2, 50)
    before, _ = hidden_both_ways(model, ids)
    with torch.no_grad():
        model.decoder.layers[0].ffn.up.weight.mul_(1.5)
    after, wanted = hidden_both_ways(model, ids)
    assert not torch.allclose(before, after)
    torch.testing.assert_close(after, wanted, rtol=0, atol=NEAR)


def test_documents_that_lie_as_nobody_lays_them_are_left_to_torch(runs):
    torn, ids = torch.tensor([[1, 1, 2, 2, 1, 1]]), draw(1, 6)
    hole = torch.tensor([[1, 1, 0, 1, 1, 1]])
    tangled = torch.tensor([[0, 1, 2, 1, 1, 1]])
    model = build()
    for how in ({"attention_mask": torn}, {"attention_mask": hole}, {"branches": tangled}):
        ours, wanted = hidden_both_ways(model, ids, **how)
        assert torch.equal(ours, wanted)
    assert runs == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", ["as Llama", "norms of queries and keys", "windows", "as GPT-2"])
def test_weights_and_caches_of_16_bits_are_computed_with_in_float32(runs, monkeypatch, dtype, shape):
    monkeypatch.setattr(native_stack, "has_fast_bf16", lambda device: False)
    short = build(**SHAPES[shape], final_norm=False).to(dtype)
    exact, ids = copy.deepcopy(short).float(), draw(3, 40)
    x = short.embed(ids)

    def go_on(stack, x, cache):
        return torch.cat((stack(x), stack(x, cache=cache), stack(x[:, :7], cache=cache)), dim=1)

    with torch.inference_mode():
        held = short.new_cache(3, 64)
        ours = go_on(short.decoder, x, held)
        assert len(runs) == 3
        with layer_by_layer():
            wanted = go_on(exact.decoder, x.float(), exact.new_cache(3, 64))
    assert ours.dtype == dtype == held.keys[0].dtype
    # rounded are: the result; where positions are added, what enters; in the cache, keys and values
    for part, steps in ((slice(40), 4 if short.decoder.positions else 1), (slice(40, None), 4)):
        error = ours[:, part].float() - wanted[:, part]
        assert error.norm() < steps * torch.finfo(dtype).eps * wanted[:, part].norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_an_output_matrix_of_16_bits_is_judged_in_float32(monkeypatch, dtype):
    monkeypatch.setattr(native_stack, "has_fast_bf16", lambda device: False)
    model = build(vocab_size=203).to(dtype)
    states, targets = torch.randn(40, 64).to(dtype), torch.randint(203, (40,))
    with torch.inference_mode():
        log_probs, _ = native_stack.judge(model, states, targets)
    wanted = (
        (states.double() @ model.embed.weight.double().T).log_softmax(1).gather(1, targets[:, None])[:, 0]
    )
    torch.testing.assert_close(log_probs, wanted, rtol=0, atol=NEAR)


def test_long_calls_in_bfloat16_are_left_to_torch_where_it_is_fast(monkeypatch):
    model = build().bfloat16()
    for is_fast in (True, False):
        monkeypatch.setattr(native_stack, "has_fast_bf16", lambda device, is_fast=is_fast: is_fast)
        with torch.inference_mode():
            assert reads(model.decoder) is not is_fast
            assert reads(model.decoder, 10_000) is not is_fast
            assert reads(model.decoder, 1000)


def watched(model):
    model.decoder.layers[0].register_forward_hook(lambda *_: None)


def adapted(model):
    attach(model, LoRA(rank=2))


def mixed(model):
    model.decoder.layers[1].ffn.up.half()


def doubled(model):
    model.double()


def rounded(model):
    quantize(model, 8)


@pytest.mark.parametrize("change", [watched, adapted, mixed, doubled, rounded])
def test_layers_that_are_not_the_usual_ones_are_run_by_torch(runs, change):
    model = build()
    change(model)
    with torch.inference_mode():
        assert not reads(model.decoder)
    assert runs == []


def test_a_model_that_learns_or_is_watched_is_run_by_torch(runs):
    model, ids = build(), draw(2, 50)
    model(ids)
    with torch.no_grad():
        model(ids)
    with torch.inference_mode(), model.watch() as seen:
        model(ids)
    assert len(seen.attention) == 2
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        model(ids)
    assert runs == []


@pytest.mark.parametrize(
    "choices",
    [
        {"position": "alibi"},
        {"parallel": True},
        {"attention_softcap": 20.0},
        {"qk_norm": "full"},
        {"dim": 72, "heads": 3},
    ],
)
def test_other_shapes_are_run_by_torch(runs, choices):
    model = build(**choices)
    with torch.inference_mode():
        assert not reads(model.decoder)
        model(draw(2, 50))
    assert runs == []


# --- how likely ids are ---


@pytest.mark.parametrize("vocab", [100, 1003])
@pytest.mark.parametrize("count", [1, 12, 77])
@pytest.mark.parametrize("tied", [True, False])
def test_ids_are_judged_by_their_logits(vocab, count, tied):
    model = build(vocab_size=vocab, tied=tied, logit_scale=0.7)
    states = 3 * torch.randn(count, 64, generator=torch.Generator().manual_seed(2))
    targets = torch.randint(vocab, (count,), generator=torch.Generator().manual_seed(3))
    targets[0] = vocab - 1
    with torch.inference_mode():
        found = native_stack.judge(model, states, targets)
        logits = model.logits(states.double().float()).double()
    assert found is not None
    own = logits.gather(1, targets[:, None])
    others = logits.scatter(1, targets[:, None], -torch.inf).amax(1)
    torch.testing.assert_close(found[0], (own - logits.logsumexp(1, keepdim=True))[:, 0], rtol=0, atol=NEAR)
    torch.testing.assert_close(found[1], own[:, 0] - others, rtol=0, atol=NEAR)


def test_judging_survives_logits_of_any_size():
    model = build()
    states, targets = torch.zeros(3, 64), torch.tensor([0, 50, 99])
    states[1:] = 1000 * model.embed.weight[50].detach()
    with torch.inference_mode():
        log_probs, gaps = native_stack.judge(model, states, targets)
        wanted = model.logits(states).double().log_softmax(1).gather(1, targets[:, None])[:, 0]
    assert torch.isfinite(log_probs).all()
    assert log_probs[0] == pytest.approx(-torch.tensor(100.0).log().item(), abs=1e-6)
    torch.testing.assert_close(log_probs, wanted, rtol=1e-5, atol=1e-4)
    assert gaps[0] == 0


def test_a_logit_that_is_not_a_number_is_not_passed_over():
    model = build()
    with torch.no_grad():
        model.embed.weight[7, 3] = torch.nan
    with torch.inference_mode():
        log_probs, _ = native_stack.judge(model, torch.ones(2, 64), torch.tensor([1, 7]))
    assert torch.isnan(log_probs).all()


def test_an_id_outside_of_the_vocabulary_is_refused():
    with torch.inference_mode(), pytest.raises(IndexError, match="vocabulary"):
        native_stack.judge(build(), torch.zeros(2, 64), torch.tensor([1, 100]))


@pytest.mark.parametrize("choices", [{"logit_bias": True}, {"logit_softcap": 30.0}])
def test_other_heads_are_judged_by_torch(choices):
    with torch.inference_mode():
        assert native_stack.judge(build(**choices), torch.zeros(2, 64), torch.tensor([1, 2])) is None


# --- which kernels ---


def test_kernels_that_compute_wrongly_are_not_used(monkeypatch):
    class Wrong(TextKernels):
        def __init__(self):
            self.is_fast = True

        def run(self, model, call):
            pass

    monkeypatch.setattr(native_stack, "text_kernels", Wrong)
    native_stack._sound_kernels.cache_clear()
    try:
        with pytest.warns(UserWarning, match="computes wrongly"):
            assert native_stack._sound_kernels(type(build().decoder)) is None
    finally:
        native_stack._sound_kernels.cache_clear()


def test_the_kernels_of_this_machine_are_sound_and_leave_the_dice_alone():
    kind = type(build().decoder)
    native_stack._sound_kernels.cache_clear()
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    found = native_stack._sound_kernels(kind)
    assert found is (KERNELS if KERNELS.is_fast else None)
    assert torch.equal(torch.rand(3), wanted)
