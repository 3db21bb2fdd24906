"""Norms in training on a GPU: a sum, its norm and all slopes; on a CPU the kernel runs in Triton's interpreter."""

from __future__ import annotations

import pytest
import torch

from stockpot.model import norms
from stockpot.model.attention import View
from stockpot.model.config import decoder
from stockpot.model.kernels import finds_compiler
from stockpot.model.layers import Block
from stockpot.model.norms import joined

EPS = 1e-5
FULL, HALF = torch.float32, torch.bfloat16


def plainly(x, change, gain, dtype):
    total = x if change is None else x + change
    return total, torch.nn.functional.rms_norm(total, gain.shape, gain.to(total.dtype), EPS).to(dtype)


def slopes(way, x, change, gain, dtype):
    """Return both results and all slopes of a sum that weighs them unequally."""
    x, gain = x.clone().requires_grad_(), gain.clone().requires_grad_()
    change = None if change is None else change.clone().requires_grad_()
    weights = torch.randn(2, *x.shape, generator=torch.Generator().manual_seed(2)).to(x.device)
    total, normed = way(x * 1.0, change, gain, dtype)
    ((total * weights[0]).sum() + (normed * weights[1]).sum()).backward()
    changed = () if change is None else (change.grad,)
    return total.detach(), normed.detach(), x.grad, gain.grad, *changed


def ours(x, change, gain, dtype):
    from stockpot.native.triton_norms import added_norm

    return added_norm(x, change, gain, EPS, dtype)


def made(shape, dtype, narrow, *, has_change):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(*shape, generator=generator).to(dtype)
    change = torch.randn(*shape, generator=generator).to(narrow) if has_change else None
    return x, change, torch.rand(shape[-1], generator=generator) + 0.5


@pytest.mark.parametrize(
    ("dtype", "narrow"), [(FULL, FULL), (FULL, HALF), (HALF, HALF), (torch.float16,) * 2]
)
@pytest.mark.parametrize("has_change", [True, False])
@pytest.mark.parametrize(("shape", "programs"), [((2, 5, 48), 1024), ((1, 1, 7), 1024), ((2, 23, 20), 5)])
def test_slopes_are_those_of_exact_arithmetic(
    dtype, narrow, has_change, shape, programs, interpreted, monkeypatch
):
    monkeypatch.setattr("stockpot.native.triton_norms.PROGRAMS", programs)
    x, change, gain = made(shape, dtype, narrow, has_change=has_change)
    found = slopes(ours, x, change, gain, narrow)
    wanted = slopes(
        plainly, *(one if one is None else one.double() for one in (x, change, gain)), torch.float64
    )
    scale = 1e-6 if narrow == FULL else 0.006
    for one, other in zip(found, wanted, strict=True):
        assert one.shape == other.shape
        assert (one.double() - other).norm() <= scale * other.norm()


def test_types_are_those_of_torch(interpreted):
    x, change, gain = made((3, 16), FULL, HALF, has_change=True)
    found, wanted = (slopes(way, x, change, gain, HALF) for way in (ours, plainly))
    assert [one.dtype for one in found] == [one.dtype for one in wanted]


def test_the_operation_keeps_torchs_rules(interpreted):
    from stockpot.native.triton_norms import norm_slopes

    rows = [torch.randn(6, 24) for _ in range(3)]
    for dtype in (FULL, HALF):
        torch.library.opcheck(norm_slopes, (*rows, torch.rand(24), EPS, dtype))


def block(device="cpu", **choices):
    torch.manual_seed(0)
    config = decoder(layers=1, dim=64, heads=4, context=32, vocab_size=9, zero_init=False, **choices)
    return Block(config.decoder).to(device), torch.randn(2, 9, 64).to(device)


def trained(layer, x, dtype=FULL):
    """Return a layer's result and all slopes."""
    x = x.clone().requires_grad_()
    layer.zero_grad()
    with torch.autocast(x.device.type, dtype, enabled=dtype != FULL):
        out = layer(x, View(causal=True))
    (out * torch.arange(64, device=x.device)).sum().backward()
    return [out.detach(), x.grad, *(one.grad for one in layer.parameters())]


LAYERS = [{}, {"norm_place": "sandwich"}, {"parallel": True}, {"norm_place": "post"}]


@pytest.mark.filterwarnings("ignore")  # what torch's compiler says while it compiles is not ours
@pytest.mark.parametrize("compiles", [False, True])
@pytest.mark.parametrize("choices", LAYERS)
def test_a_layer_learns_the_same_through_it(choices, compiles, interpreted, unchecked, monkeypatch):
    layer, x = block(**choices)
    wanted = trained(layer, x)
    monkeypatch.setattr(norms, "trains_on_gpu", lambda _: True)
    found = trained(torch.compile(layer, backend="aot_eager", fullgraph=True) if compiles else layer, x)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-3)


def test_only_norms_by_root_mean_square_of_usual_rows_go_through_it(interpreted, monkeypatch):
    def goes(dtype=FULL, **choices):
        norm, x = block(**choices)[0].attention_norm, torch.ones(2, 64, dtype=dtype, requires_grad=True)
        return "AddedNorm" in type(joined(x, None, norm.to(dtype))[1].grad_fn).__name__

    assert not goes()  # on a CPU
    monkeypatch.setattr(norms, "trains_on_gpu", lambda _: True)
    assert goes()
    assert not goes(norm="layer")
    assert not goes(torch.float64)
    monkeypatch.setattr("stockpot.native.triton_norms.LONGEST", 63)
    assert not goes()


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore")  # what torch's compiler says while it compiles is not ours
@pytest.mark.parametrize("compiles", [False, True])
@pytest.mark.parametrize("choices", LAYERS)
def test_a_gpu_computes_it(choices, compiles, unchecked):
    wanted = trained(*block(**choices))
    layer, x = block("cuda", **choices)
    if compiles:
        layer.compile()
    for dtype, narrow, bound in (
        (FULL, False, 2e-3),
        (HALF, False, 0.03),
        (HALF, True, 0.03),
    ):
        found = trained(layer, x.bfloat16() if narrow else x, dtype)
        for one, other in zip(found, wanted, strict=True):
            assert (one.cpu().float() - other).norm() <= bound * other.norm()


def test_without_a_compiler_training_is_left_to_torch(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    assert not finds_compiler()
    (tmp_path / "gcc").touch(mode=0o755)
    assert finds_compiler()
