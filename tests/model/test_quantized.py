"""Quantised models: close to the float model, and the same whatever is computed together."""

from __future__ import annotations

import copy

import pytest
import torch

from stockpot.errors import ConfigError
from stockpot.model import quantized
from stockpot.model.adapters import LoRA, attach, has_adapters
from stockpot.model.bottleneck import Bottleneck, attach_bottlenecks
from stockpot.model.config import decoder
from stockpot.model.grids import NativeMatrix, TorchMatrix, choose_grid
from stockpot.model.quantized import quantize
from stockpot.model.soft import attach_soft
from stockpot.model.transformer import Transformer
from stockpot.native.calls import kernels

SHAPES = {
    "default": {},
    "grouped with a window": {"qk_norm": None, "kv_heads": 2, "window": (None, 9)},
    "as GPT-2": {
        "norm": "layer",
        "norm_bias": True,
        "position": "learned",
        "ffn": "gelu",
        "ffn_bias": True,
        "qkv_bias": True,
        "out_bias": True,
        "qk_norm": None,
    },
    "partly rotated": {"ffn": "geglu_tanh", "ffn_bias": True, "rope_fraction": 0.5},
    "squared relu": {"ffn": "relu2", "head_dim": 48},
    "untied": {"tied": False},
}
NO_KERNELS = pytest.mark.skipif(kernels() is None, reason="the kernels could not be compiled here")


def build(**choices):
    torch.manual_seed(0)
    sizes = {"layers": 2, "dim": 128, "heads": 4, "vocab_size": 300, "context": 64, "zero_init": False}
    model = Transformer(decoder(**{**sizes, **choices})).eval()
    with torch.no_grad():
        for param in model.parameters():
            if param.ndim == 1:
                param.add_(0.1 * torch.randn_like(param))
    return model


@pytest.fixture(params=SHAPES, ids=str)
def model(request):
    return build(**SHAPES[request.param])


@pytest.mark.parametrize("bits", [8, 4])
def test_digits_stand_for_nearby_weights(bits):
    weight = torch.randn(48, 200, generator=torch.Generator().manual_seed(0))
    grid = choose_grid(weight, bits)
    steps = grid.scales.repeat_interleave(grid.span, 1)[:, :200]
    # half a step, and what halves lose of the least weight
    assert ((grid.weight() - weight).abs() <= steps * 0.51 + 2e-3 * (bits == 4)).all()


def test_four_bits_give_back_what_was_on_such_a_grid():
    weight = torch.randn(32, 128, generator=torch.Generator().manual_seed(0))
    once = choose_grid(weight, 4).weight()
    assert torch.equal(choose_grid(once, 4).weight(), once)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e5])
def test_weights_of_any_size_keep_their_digits(scale):
    weight = torch.randn(16, 64, generator=torch.Generator().manual_seed(0))
    found = choose_grid(weight * scale, 8).weight() / scale
    assert (found - weight).abs().max() < 0.02


@NO_KERNELS
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize(
    ("outputs", "inputs", "rows"), [(48, 128, 1), (40, 200, 5), (16, 16, 17), (300, 96, 3)]
)
def test_our_products_match_the_weights(bits, outputs, inputs, rows):
    make = torch.Generator().manual_seed(0)
    grid = choose_grid(torch.randn(outputs, inputs, generator=make), bits)
    x = torch.randn(rows, inputs, generator=make)
    weight = grid.weight()
    got = NativeMatrix(grid, kernels()).multiply(x)
    steps = x.abs().amax(1, keepdim=True) / {8: 32767, 4: 127}[bits]  # inputs are rounded to 16 and 8 bits
    assert ((got - x @ weight.T).abs() <= steps / 2 * weight.abs().sum(1) + 1e-4).all()


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize(("outputs", "inputs"), [(48, 128), (40, 200)])
def test_torch_products_match_the_weights(bits, outputs, inputs):
    make = torch.Generator().manual_seed(0)
    grid = choose_grid(torch.randn(outputs, inputs, generator=make), bits)
    x = torch.randn(3, inputs, generator=make)
    torch.testing.assert_close(TorchMatrix(grid).multiply(x), x @ grid.weight().T, rtol=1e-3, atol=1e-3)
    assert torch.equal(TorchMatrix(grid).rows(torch.tensor([3, 0])), grid.weight()[[3, 0]])


@NO_KERNELS
@pytest.mark.parametrize("scale", [1e-6, 1.0, 3e4])
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize(
    ("outputs", "inputs", "paired"), [(48, 128, False), (40, 200, False), (96, 72, True), (7, 3, False)]
)
def test_our_kernels_pack_as_the_grid_says(bits, outputs, inputs, paired, scale):
    weight = torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(0)) * scale
    weight[3] = 0
    weight[:, : inputs // 2] = weight[:, : inputs // 2].abs()
    told = NativeMatrix(choose_grid(weight, bits), kernels(), is_paired=paired)
    made = NativeMatrix.of(weight, bits, kernels(), is_paired=paired)
    assert made.facts.gain == told.facts.gain
    assert torch.equal(made.scales, told.scales)
    assert torch.equal(made.digits, told.digits)
    assert bits == 8 or torch.equal(made.lows, told.lows)


@NO_KERNELS
def test_looking_up_rows_gives_the_weights():
    grid = choose_grid(torch.randn(40, 96, generator=torch.Generator().manual_seed(0)), 8)
    ids = torch.tensor([[0, 17], [39, 5]])
    torch.testing.assert_close(NativeMatrix(grid, kernels()).rows(ids), grid.weight()[ids])
    with pytest.raises(IndexError):
        NativeMatrix(grid, kernels()).rows(torch.tensor([40]))


@torch.inference_mode()
def test_eight_bits_stay_close_to_the_float_model(model):
    ids = torch.randint(0, 300, (2, 30))
    wanted = model(ids).logits
    got = quantize(copy.deepcopy(model), 8)(ids).logits
    assert (got - wanted).square().mean().sqrt() < 0.03 * wanted.std()


@NO_KERNELS
@torch.inference_mode()
@pytest.mark.parametrize("bits", [8, 4])
def test_one_call_equals_layer_by_layer(model, bits):
    small = quantize(model, bits)
    assert small._native is not None
    ids = torch.randint(0, 300, (2, 30))
    whole = small(ids).logits
    small._native = None
    layered = small(ids).logits
    rounding = {8: 0.02, 4: 0.15}[
        bits
    ]  # halves in the cache; and a digit of an input may fall to the other side
    assert (whole - layered).abs().max() < rounding * layered.std()


@NO_KERNELS
@torch.inference_mode()
@pytest.mark.parametrize("bits", [8, 4])
def test_neither_the_cache_nor_company_changes_a_bit(model, bits):
    small = quantize(model, bits)
    ids = torch.randint(0, 300, (3, 40))
    wanted = small(ids).logits
    cache = small.new_cache(3, 40)
    parts = [small(ids[:, :7], cache=cache).logits]
    parts += [small(ids[:, at : at + 1], cache=cache).logits for at in range(7, 40)]
    assert torch.equal(torch.cat(parts, 1), wanted)
    assert torch.equal(torch.cat([small(row[None]).logits for row in ids]), wanted)
    real = torch.arange(40) < torch.tensor([[40], [11], [1]])
    padded = small(ids, attention_mask=real).logits
    assert torch.equal(padded[real], wanted[real])


@NO_KERNELS
@torch.inference_mode()
def test_the_number_of_threads_changes_no_bit():
    small = quantize(build(), 4)
    ids = torch.randint(0, 300, (1, 20))
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(small(ids).logits)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@NO_KERNELS
def test_an_id_outside_of_the_vocabulary_is_refused():
    small = quantize(build(), 8)
    with pytest.raises(IndexError):
        small(torch.tensor([[300]]))


def test_without_a_compiler_the_same_weights_are_used_and_the_user_is_told(monkeypatch):
    ids = torch.randint(0, 300, (2, 20))
    usual = quantize(build(), 8)(ids).logits
    monkeypatch.setattr(quantized, "_sound_kernels", lambda: None)
    with pytest.warns(UserWarning, match="more slowly"):
        slow = quantize(build(), 8)
    assert slow.kernel == "torch"
    assert (slow(ids).logits - usual).abs().max() < 0.02 * usual.std()


def test_a_quantised_model_is_not_quantised_again():
    with pytest.raises(ValueError, match="float weights"):
        quantize(quantize(build(), 8), 8)


@pytest.mark.parametrize("frozen", [None, "int8"])
def test_adapters_are_merged_before_a_model_is_rounded(frozen):
    model, ids = build(), torch.tensor([[3, 4, 5, 6]])
    plain = quantize(copy.deepcopy(model), 8)(ids).logits
    attach(model, LoRA(rank=2, frozen=frozen))
    with torch.no_grad():
        for name, value in model.named_parameters():
            if ".lora_up" in name:
                torch.nn.init.normal_(value, std=0.3)
        tuned = model.eval()(ids).logits
    small = quantize(model, 8)
    assert not has_adapters(small)
    assert (small(ids).logits - tuned).abs().max() < 0.1 * (plain - tuned).abs().max()


@pytest.mark.parametrize(
    "add",
    [
        lambda model: attach_bottlenecks(model, Bottleneck()),
        lambda model: attach_soft(model, torch.ones(2, 128)),
    ],
    ids=["bottlenecks", "soft prompt"],
)
def test_a_model_with_parts_that_rounding_would_lose_is_refused(add):
    model = build()
    add(model)
    with pytest.raises(ConfigError, match="cannot be rounded with it"):
        quantize(model, 8)
