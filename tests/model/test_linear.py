"""The two ways to multiply give the same product."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from stockpot.model import linear


@pytest.mark.parametrize("rows", [1, 3, 32, 33])
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("is_slow", [False, True])
def test_either_way_gives_the_same_product(rows, has_bias, is_slow, monkeypatch):
    monkeypatch.setattr(linear, "_IS_SLOW", is_slow)
    torch.manual_seed(0)
    x, weight = torch.randn(rows, 1, 256), torch.randn(1024, 256)
    bias = torch.randn(1024) if has_bias else None
    with torch.inference_mode():
        found = linear.multiply(x, weight, bias)
        expected = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
    assert found.shape == (rows, 1, 1024)
    # sums of 256 products of size 1: float32 rounds the 16 they come to at about 1e-6 of it
    torch.testing.assert_close(found.double(), expected, atol=1e-4, rtol=1e-5)


def test_training_goes_through_torch_and_has_gradients():
    layer = linear.Linear(256, 1024, bias=True)
    layer(torch.ones(1, 256)).sum().backward()
    assert torch.equal(layer.weight.grad, torch.ones(1024, 256))


def test_a_build_without_the_other_kernel_multiplies_too(monkeypatch):
    monkeypatch.setattr(linear, "_KERNEL", None)
    layer = linear.Linear(256, 1024, bias=True)
    with torch.inference_mode():
        assert torch.equal(layer(torch.ones(2, 256)), F.linear(torch.ones(2, 256), layer.weight, layer.bias))


@pytest.mark.skipif(linear._KERNEL is None, reason="this build of torch has no oneDNN")
@pytest.mark.parametrize(("is_slow", "taken"), [(False, 1), (True, 2)])
def test_few_rows_take_the_short_way_and_many_where_the_usual_one_is_slow(monkeypatch, is_slow, taken):
    calls = []
    monkeypatch.setattr(linear, "_IS_SLOW", is_slow)
    kernel = linear._KERNEL
    monkeypatch.setattr(linear, "_KERNEL", lambda *args: calls.append(1) or kernel(*args))
    with torch.inference_mode():
        linear.multiply(torch.ones(1, 256), torch.ones(1024, 256))
        linear.multiply(torch.ones(64, 256), torch.ones(1024, 256))
        linear.multiply(torch.ones(1, 16), torch.ones(16, 16))
        linear.multiply(torch.ones(64, 64), torch.ones(64, 64))
    assert len(calls) == taken


@pytest.mark.skipif(linear._KERNEL is None, reason="this build of torch has no oneDNN")
@pytest.mark.parametrize("outputs", [96, 640])
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("frozen", [None, "x", "weight"])
def test_training_where_the_usual_kernel_is_slow_has_the_same_slopes(outputs, has_bias, frozen, monkeypatch):
    monkeypatch.setattr(linear, "_IS_SLOW", True)
    monkeypatch.setattr(linear, "MUCH", 1)
    torch.manual_seed(0)
    given = {"x": torch.randn(3, 40, 192), "weight": torch.randn(outputs, 192)}
    given |= {"bias": torch.randn(outputs)} if has_bias else {}
    slope, found = torch.randn(3, 40, outputs), {}
    for kind in (torch.float32, torch.float64):
        used = {name: one.detach().to(kind).requires_grad_(name != frozen) for name, one in given.items()}
        out = linear.multiply(**used)
        with torch.autocast("cpu", torch.bfloat16):  # the way back is that of the way there
            out.backward(slope.to(kind))
        assert all(one.grad is None or one.grad.is_contiguous() for one in used.values())
        found[kind] = [out, *(one.grad for name, one in used.items() if name != frozen)]
    for ours, exact in zip(*found.values(), strict=True):
        # sums of up to 640 products of size 1
        torch.testing.assert_close(ours.double(), exact, atol=2e-4, rtol=1e-5)


@pytest.mark.parametrize("is_slow", [False, True])
def test_a_product_fills_the_room_that_it_is_given(is_slow, monkeypatch):
    monkeypatch.setattr(linear, "_IS_SLOW", is_slow)
    monkeypatch.setattr(linear, "MUCH", 1)
    torch.manual_seed(0)
    left, right, room = torch.randn(70, 40), torch.randn(30, 40).T, torch.empty(70, 30)
    assert linear.product(left, right, out=room) is room
    torch.testing.assert_close(room, linear.product(left, right))
    torch.testing.assert_close(room, left @ right, atol=1e-5, rtol=1e-5)
