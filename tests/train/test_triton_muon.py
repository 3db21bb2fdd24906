"""Muon's kernels for GPUs do what torch's operations do; on a CPU they run in Triton's interpreter."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from stockpot.train.muon import Matrix, Muon, _Stack

SHAPES = [((24, 40), (8, 16)), ((16, 40), (16,)), ((6, 8), (6,)), ((120, 64), (120,))]


def moved(device, dtype, kernels, monkeypatch):
    """Take three steps, the second without some gradients; return weights and momenta."""
    monkeypatch.setattr(_Stack, "kernels", kernels)
    generator = torch.Generator().manual_seed(0)
    weights = [nn.Parameter(torch.randn(*shape, generator=generator).to(device)) for shape, _ in SHAPES]
    matrices = [Matrix(weight, parts) for weight, (_, parts) in zip(weights, SHAPES, strict=True)]
    muon = Muon(matrices, momentum=0.9, iterations=5, dtype=dtype)
    for step in range(3):
        for number, weight in enumerate(weights):
            gradient = torch.randn(*weight.shape, generator=generator).to(device)
            weight.grad = None if step == 1 and number < 2 else gradient * 10.0**-number
        muon.step(0.1, weight_decay=0.5, is_cautious=False)
    return [*(weight.detach() for weight in weights), *muon.momenta()]


def assert_moved_alike(device, dtype, kernels, monkeypatch):
    found = moved(device, dtype, kernels, monkeypatch)
    wanted = moved(device, dtype, lambda _: None, monkeypatch)
    bound = 1e-5 if dtype == torch.float32 else 0.01
    for one, other in zip(found, wanted, strict=True):
        assert (one - other).norm() <= bound * other.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_and_momenta_move_as_torch_moves_them(dtype, interpreted, monkeypatch):
    from stockpot.native import triton_muon

    monkeypatch.setattr(triton_muon, "BLOCK", 256)
    assert_moved_alike("cpu", dtype, lambda _: triton_muon, monkeypatch)


def test_gradients_are_left_as_they_are(interpreted):
    from stockpot.native import triton_muon

    gradient, momentum = torch.randn(4, 8), torch.randn(1, 4, 8)
    kept = gradient.clone()
    triton_muon.gather([gradient], momentum, torch.empty(1, 4, 8), keep=0.9, margin=1.0)
    assert gradient.equal(kept)


def test_what_lies_otherwise_is_left_to_torch(interpreted):
    from stockpot.native.triton_muon import suits

    held = torch.zeros(8, 8)
    assert suits([held, None, held[4:]])
    assert not suits([held, held.mT])
    assert not suits([held.double()])
    assert not suits([torch.zeros(3, 7)[1:]])  # 28 bytes behind a multiple of 16


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gpu_moves_them(dtype, monkeypatch):
    own = _Stack.kernels
    known = []

    def kernels(stack):
        known.append(own(stack))
        return known[-1]

    assert_moved_alike("cuda", dtype, kernels, monkeypatch)
    assert known
    assert all(one is not None for one in known)
