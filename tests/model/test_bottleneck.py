"""Bottleneck adapters: no change at first, the model's own weights untouched, gone when taken off."""

from __future__ import annotations

import pytest
import torch

from stockpot.model.bottleneck import (
    Bottleneck,
    attach_bottlenecks,
    bottleneck_weights,
    detach_bottlenecks,
    has_bottlenecks,
    settings_of_bottlenecks,
)
from stockpot.model.config import decoder
from stockpot.model.transformer import Transformer


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Transformer(decoder(layers=2, dim=32, heads=2, context=32, vocab_size=50, zero_init=False)).eval()


def read(model):
    """Read without gradients: a model that learns takes other kernels, which round otherwise."""
    with torch.no_grad():
        return model(IDS).logits


IDS = torch.tensor([[3, 4, 5, 6]])


@pytest.mark.parametrize("at", [("ffn",), ("attention",), ("ffn", "attention")])
def test_they_start_as_no_change_and_come_off_without_a_trace(model, at):
    names, before = set(model.state_dict()), read(model)
    count = attach_bottlenecks(model, Bottleneck(at=at, reduction=8))
    inner = 32 // 8
    assert count == 2 * len(at) * (2 * 32 * inner + inner + 32)
    assert names <= set(model.state_dict())
    assert torch.equal(read(model), before)
    for value in bottleneck_weights(model).values():
        torch.nn.init.normal_(value)
    assert not torch.allclose(read(model), before)
    detach_bottlenecks(model)
    assert not has_bottlenecks(model) and set(model.state_dict()) == names
    assert torch.equal(read(model), before)


def test_an_adapter_computes_its_formula(model):
    settings = Bottleneck(scale=0.5)
    attach_bottlenecks(model, settings)
    layer = model.decoder.layers[0].ffn.down
    for value in (layer.narrow, layer.narrow_bias, layer.wide, layer.wide_bias):
        torch.nn.init.normal_(value)
    x = torch.randn(3, layer.in_features)
    y = x @ layer.weight.T
    inside = torch.relu(y @ layer.narrow.T + layer.narrow_bias)
    expected = y + 0.5 * (inside @ layer.wide.T + layer.wide_bias)
    torch.testing.assert_close(layer(x), expected)
    assert settings_of_bottlenecks(model) == settings


def test_only_adapters_get_gradients(model):
    attach_bottlenecks(model, Bottleneck())
    model(IDS).logits.sum().backward()
    learned = {name for name, value in model.named_parameters() if value.grad is not None}
    assert learned == set(bottleneck_weights(model))
    with pytest.raises(ValueError, match="already"):
        attach_bottlenecks(model, Bottleneck())
