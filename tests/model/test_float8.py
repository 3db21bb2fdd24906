"""Products in 8-bit floats are as near as the type allows, both ways, at any size of the numbers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from stockpot.errors import ConfigError
from stockpot.model import float8
from stockpot.model.config import decoder
from stockpot.model.transformer import Transformer
from stockpot.train.stacks import set_up


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def error(found: Tensor, wanted: Tensor) -> float:
    return float((found.detach().double() - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
def test_products_both_ways(size):
    x = (random(2, 32, 64) * size).bfloat16().requires_grad_()
    weight = random(48, 64, seed=1).requires_grad_()
    slope = random(2, 32, 48, seed=2) / size
    out = float8.multiply(x, weight)
    to_x, to_weight = torch.autograd.grad(out, (x, weight), slope.bfloat16())
    rows, rises = x.detach().double().view(-1, 64), slope.double().view(-1, 48)
    assert (out.dtype, to_x.dtype, to_weight.dtype) == (torch.bfloat16, torch.bfloat16, torch.float32)
    # each factor is off by up to 1/16 (E4M3) or 1/8 (E5M2) of itself, by about a third of that on average
    assert error(out.view(-1, 48), rows @ weight.detach().double().T) < 0.05
    assert error(to_x.view(-1, 64), rises @ weight.detach().double()) < 0.08
    assert error(to_weight, rises.T @ rows) < 0.08


def test_zeros_stay_zeros():
    x, weight = torch.zeros(16, 32, dtype=torch.bfloat16, requires_grad=True), random(16, 32)
    assert not float8.multiply(x, weight).any()


def model_of(**how):
    torch.manual_seed(0)
    model = Transformer(decoder(layers=2, dim=64, heads=2, context=32, vocab_size=64, zero_init=False))
    set_up(model, torch.device("cpu"), **how)
    return model


def test_layers_that_train_use_them_and_those_that_write_do_not(monkeypatch):
    monkeypatch.setattr(float8, "are_fast", lambda device: True)
    calls = []
    multiply = float8.multiply
    monkeypatch.setattr(float8, "multiply", lambda x, weight: calls.append(x.shape) or multiply(x, weight))
    model, plain = model_of(fp8=True), model_of()
    ids = torch.arange(64).view(2, 32)
    with torch.autocast("cpu", torch.bfloat16):
        found, wanted = model(ids).logits, plain(ids).logits
    assert len(calls) == 8  # four products in each of two layers
    assert 0 < error(found, wanted.detach().double()) < 0.15  # eight products in a row, each off by 0.04
    with torch.no_grad():
        model(ids)
    model(ids)  # in float32
    assert len(calls) == 8


def test_a_device_without_them_is_refused():
    with pytest.raises(ConfigError, match=r"8\.9"):
        model_of(fp8=True)


def test_narrow_states_change_little_and_are_narrow():
    ids = torch.arange(64).view(2, 32)
    model, plain = model_of(narrow_states=True), model_of()
    seen = []
    model.decoder.layers[1].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        found, wanted = model(ids).logits, plain(ids).logits
    assert seen == [torch.bfloat16]
    assert error(found, wanted.detach().double()) < 0.02
    model(ids)
    assert seen[1:] == [torch.float32]
