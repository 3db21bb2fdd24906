"""Low-rank adapters: in place, exact to merge and to take off, and the base stays as it is."""

from __future__ import annotations

import pytest
import torch

from stockpot.errors import ConfigError
from stockpot.model.adapters import (
    AdaptedLinear,
    LoRA,
    Rows,
    add_updates,
    attach,
    detach,
    has_adapters,
    merge,
    merged_copy,
    settings_of,
    updates_of,
    without_adapters,
)
from stockpot.model.bottleneck import Bottleneck, attach_bottlenecks, bottleneck_weights
from stockpot.model.config import decoder, encoder_decoder
from stockpot.model.linear import Linear
from stockpot.model.soft import attach_soft
from stockpot.model.transformer import Transformer

IDS = torch.tensor([[1, 5, 9, 2, 7]])


def tiny(**choices):
    torch.manual_seed(0)
    sizes = {"layers": 2, "dim": 16, "heads": 4, "kv_heads": 2, "context": 16, "vocab_size": 40}
    return Transformer(decoder(**sizes, zero_init=False, **choices))


@torch.no_grad()
def logits(model, **inputs):
    """Read without gradients: with and without them the kernels differ in rounding."""
    return model(IDS, **inputs).logits


def shake(model):
    """Give adapters something to say."""
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if ".lora_up" in name:
            torch.nn.init.normal_(parameter, std=0.1)


def test_an_adapted_layer_is_the_base_plus_scale_times_up_down():
    linear = Linear(2, 3, bias=False)
    layer = AdaptedLinear(linear, [Rows(1, 3)], LoRA(rank=1, alpha=4))
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[1.0, 0], [0, 1], [1, 1]]))
        layer.lora_down.copy_(torch.tensor([[1.0, 2.0]]))
        layer.lora_up[0].copy_(torch.tensor([[1.0], [10.0]]))
    # inner = 1·3 + 2·5 = 13; scale 4 / 1; row 0 has no adapter.
    assert layer(torch.tensor([[3.0, 5.0]])).tolist() == [[3.0, 5.0 + 4 * 13, 8.0 + 4 * 130]]


def test_attaching_changes_nothing_and_freezes_the_rest():
    model = tiny()
    before = logits(model)
    count = attach(model, LoRA(rank=2))
    assert torch.equal(logits(model), before)
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert all(".lora_" in name for name in trainable)
    # 7 adapters a layer: rank · (inputs + outputs)
    kv, ffn = 8, model.config.main.ffn_width
    a_layer = 2 * (2 * (16 + 16) + 2 * (16 + kv) + 2 * (16 + ffn) + (ffn + 16))
    assert count == 2 * a_layer == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert has_adapters(model)
    assert settings_of(model).rank == 2


def test_training_moves_the_adapter_and_not_the_base():
    model = tiny()
    frozen = {name: p.detach().clone() for name, p in model.named_parameters()}
    attach(model, LoRA(rank=2))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05)
    for _ in range(3):
        optimizer.zero_grad()
        model(IDS).logits.square().mean().backward()
        optimizer.step()
    assert all(torch.equal(dict(model.named_parameters())[name], old) for name, old in frozen.items())
    assert any(bool(update.up.any()) for update in updates_of(model))


def test_merging_keeps_the_outputs_and_detaching_restores_them():
    model = tiny()
    plain = logits(model)
    attach(model, LoRA(rank=3, alpha=5, rslora=True))
    shake(model)
    adapted = logits(model)
    assert not torch.allclose(adapted, plain, atol=1e-2)
    with without_adapters(model):
        assert torch.equal(logits(model), plain)
    updates = detach(model)
    assert not has_adapters(model)
    assert torch.equal(logits(model), plain)
    assert all(p.requires_grad for p in model.parameters())
    add_updates(model, updates)
    torch.testing.assert_close(logits(model), adapted, atol=1e-5, rtol=1e-5)


def test_merge_in_place_equals_the_adapted_model():
    model = tiny(ffn="gelu", qkv_bias=True)
    attach(model, LoRA(rank=2, targets=("query", "value", "down")))
    shake(model)
    adapted = logits(model)
    merge(model)
    torch.testing.assert_close(logits(model), adapted, atol=1e-5, rtol=1e-5)
    assert not has_adapters(model)


def test_only_the_named_matrices_are_adapted():
    model = tiny()
    attach(model, LoRA(rank=2, targets=("key",)))
    rows = {(update.layer, update.rows) for update in updates_of(model)}
    assert rows == {(f"decoder.layers.{i}.attention.qkv", Rows(16, 24)) for i in range(2)}


def test_a_matrix_that_is_not_there_is_refused():
    with pytest.raises(ConfigError, match="gate"):
        attach(tiny(ffn="gelu"), LoRA(targets=("gate",)))
    model = tiny()
    attach(model, LoRA())
    with pytest.raises(ValueError, match="already"):
        attach(model, LoRA())


def test_cross_attention_is_adapted_too():
    torch.manual_seed(0)
    model = Transformer(
        encoder_decoder(layers=1, dim=16, heads=2, context=16, vocab_size=40, zero_init=False)
    )
    attach(model, LoRA(rank=2))
    layers = {update.layer for update in updates_of(model)}
    assert {"decoder.layers.0.cross.q", "decoder.layers.0.cross.kv", "decoder.layers.0.cross.out"} <= layers
    shake(model)
    adapted = logits(model, source=IDS)
    merge(model)
    torch.testing.assert_close(logits(model, source=IDS), adapted, atol=1e-5, rtol=1e-5)


def test_a_frozen_weight_in_bfloat16_computes_what_autocast_does():
    model = tiny()
    attach(model, LoRA(rank=2))
    shake(model)
    with torch.autocast("cpu", torch.bfloat16):
        wide = logits(model)
    updates = updates_of(model)
    detach(model)
    attach(model, LoRA(rank=2), frozen_dtype=torch.bfloat16)
    with torch.no_grad():
        for update in updates:
            layer = model.get_submodule(update.layer)
            index = layer.rows.index(update.rows)
            layer.lora_down[2 * index : 2 * index + 2] = update.down
            layer.lora_up[index].copy_(update.up)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(logits(model), wide)
    assert logits(model).dtype == torch.float32  # and it runs without autocast, too


@pytest.mark.parametrize("adapted", [True, False])
@pytest.mark.parametrize("tied", [True, False])
def test_a_merged_copy_computes_the_same_and_the_model_stays_as_it_is(adapted, tied):
    model = tiny(tied=tied)
    if adapted:
        attach(model, LoRA(rank=2))
        shake(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    copy = merged_copy(model, torch.float32)
    torch.testing.assert_close(logits(copy), logits(model), atol=1e-5, rtol=1e-5)
    assert not has_adapters(copy) and not any(p.requires_grad for p in copy.parameters())
    with torch.no_grad():
        for parameter in copy.parameters():
            parameter.zero_()
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert {p.dtype for p in merged_copy(model, torch.bfloat16).parameters()} == {torch.bfloat16}


def test_a_merged_copy_keeps_what_no_weight_can_hold():
    model = tiny()
    attach_bottlenecks(model, Bottleneck(at=("ffn", "attention")))
    for value in bottleneck_weights(model).values():
        torch.nn.init.normal_(value)
    model.eval()
    torch.testing.assert_close(logits(merged_copy(model, torch.float32)), logits(model))
    soft = tiny()
    attach_soft(soft, torch.ones(2, 16))
    with pytest.raises(ValueError, match="SoftEmbedding"):
        merged_copy(soft, torch.float32)
