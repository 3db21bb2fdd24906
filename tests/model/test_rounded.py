"""Products under autocast that do not keep the rounded matrix: the same numbers, less memory."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from stockpot.model import rounded
from stockpot.model.linear import Linear


@pytest.fixture
def layer() -> Linear:
    torch.manual_seed(0)
    return Linear(512, 640)


def gradients(layer: Linear, x: torch.Tensor, product) -> list[torch.Tensor]:
    layer.zero_grad()
    x = x.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        out = product(x)
    out.backward(torch.linspace(-1, 1, out.numel()).view(out.shape).to(out.dtype))
    return [out, x.grad, layer.weight.grad.clone(), layer.bias.grad.clone()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_large_layer_computes_what_autocast_does_number_for_number(layer, dtype):
    x = torch.randn(2, 40, 512).to(dtype)
    ours = gradients(layer, x, layer)
    theirs = gradients(layer, x, lambda x: F.linear(x, layer.weight, layer.bias))
    for own, other in zip(ours, theirs, strict=True):
        assert own.dtype == other.dtype
        assert torch.equal(own, other)


def kept_by(layer: nn.Module, x: torch.Tensor) -> set[tuple[torch.dtype, torch.Size]]:
    kept = set()

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.add((tensor.dtype, tensor.shape))
        return tensor

    with torch.autocast("cpu", torch.bfloat16), torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        layer(x)
    return kept


def test_no_rounded_copy_of_the_matrix_is_kept(layer):
    x = torch.randn(4, 512, requires_grad=True)
    assert kept_by(layer, x) == {(torch.float32, (640, 512)), (torch.bfloat16, (4, 512))}
    small = kept_by(nn.Linear(512, 640), x)  # torch's own keeps one, so that the test can fail
    assert any(dtype == torch.bfloat16 and set(shape) == {640, 512} for dtype, shape in small)


def test_it_is_left_to_torch_where_nothing_learns_or_nothing_is_rounded(layer):
    x = torch.randn(4, 512)
    assert not rounded.suit(x, layer.weight)
    with torch.autocast("cpu", torch.bfloat16):
        assert rounded.suit(x, layer.weight)
        assert not rounded.suit(x, layer.weight[:128])
        with torch.no_grad():
            assert not rounded.suit(x, layer.weight)
        layer.requires_grad_(False)
        assert not rounded.suit(x, layer.weight)
        assert rounded.suit(x.requires_grad_(), layer.weight)
