"""Frozen matrices of few bits: bounded errors, the slopes of the floats they stand for, and less memory."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys

import pytest
import torch
from torch import nn

from stockpot.model.adapters import (
    AdaptedLinear,
    FrozenLinear,
    LoRA,
    attach,
    detach,
    frozen_bytes,
    merge,
    merged_copy,
    round_matrices,
    shapes_of,
    weights_of,
    without_adapters,
    writer_of,
)
from stockpot.model.config import decoder
from stockpot.model.frozen import AT_ONCE, GROUP, KINDS, NF4, SPAN, FrozenMatrix
from stockpot.model.linear import Linear
from stockpot.model.transformer import Transformer
from stockpot.train.optim import OptimConfig, Optimizer

IDS = torch.tensor([[1, 5, 9, 2, 7]])
SHAPES = [
    (96, 128),
    (5, 7),
    (64, 64),
    (300, 130),
]  # the last: neither spans nor groups of spans come out even


def matrix(*shape):
    torch.manual_seed(sum(shape))
    return torch.randn(shape) * torch.logspace(-2, 1, shape[0])[:, None]


def tiny(**choices):
    torch.manual_seed(0)
    sizes = {"layers": 2, "dim": 32, "heads": 4, "kv_heads": 2, "context": 16, "vocab_size": 40}
    return Transformer(decoder(**sizes, zero_init=False, **choices)).eval()


def frozen(kind, model=None, **choices):
    model = model or tiny()
    attach(model, LoRA(rank=2, frozen=kind, **choices))
    return model


def shake(model):
    """Give adapters something to say."""
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if ".lora_up" in name:
            nn.init.normal_(parameter, std=0.1)
    return model


# --- rounding ---


def test_nf4_is_the_paper_s_numbers():
    """Half of the 16 numbers are evenly spaced quantiles of each side, from 0 to where 1 - 1/2 (1/32 + 1/30) lies; 0 is one."""
    last = 1 - (1 / 32 + 1 / 30) / 2
    quantile = lambda p: math.sqrt(2) * torch.erfinv(2 * p - 1)  # noqa: E731 - of the normal distribution
    above = quantile(torch.linspace(0.5, last, 9, dtype=torch.float64))[1:]
    below = -quantile(torch.linspace(0.5, last, 8, dtype=torch.float64))[1:]
    wanted = torch.cat([below.flip(0), torch.zeros(1, dtype=torch.float64), above]) / above[-1]
    assert torch.allclose(torch.tensor(NF4, dtype=torch.float64), wanted, atol=1e-6)  # printed as float32


@pytest.mark.parametrize("shape", SHAPES)
def test_8_bits_err_by_half_a_step_at_most(shape):
    """A step is the largest of 64 inputs over 127, itself rounded to 11 bits: half of 1 + 2^-11 steps."""
    weight = matrix(*shape)
    held = FrozenMatrix(weight, "int8")
    padded = nn.functional.pad(weight, (0, -shape[1] % SPAN)).unflatten(1, (-1, SPAN))
    step = (padded.abs().amax(-1) / 127).repeat_interleave(SPAN, 1)[:, : shape[1]]
    assert bool(((held.weight() - weight).abs() <= step / 2 * (1 + 2**-11) + 1e-12).all())
    assert held.weight().shape == shape


@pytest.mark.parametrize("shape", SHAPES)
def test_4_bits_err_by_half_the_widest_gap_and_half_a_step_of_the_scales(shape):
    """Of the scale s for 64 weights s' is kept: off by half a step of log(most / least of 256) / 255 in the logarithm.

    A weight within s' errs by half the widest gap of NF4 at most, 0.152 s', one beyond it by s - s'.
    """
    weight = matrix(*shape)
    flat = nn.functional.pad(weight.flatten(), (0, -weight.numel() % SPAN)).view(-1, SPAN)
    scales = flat.abs().amax(1)
    half = torch.cat([(one.max() / one.min()).log().expand(len(one)) / 510 for one in scales.split(GROUP)])
    off = scales * half.expm1()
    gap = max(b - a for a, b in itertools.pairwise(NF4)) / 2
    bound = (gap * (scales + off) + off).repeat_interleave(SPAN)[: weight.numel()].view(shape)
    held = FrozenMatrix(weight, "nf4")
    assert bool(((held.weight() - weight).abs() <= bound * (1 + 1e-5)).all())
    assert held.weight().shape == shape


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_rounded_once_stays(kind):
    once = FrozenMatrix(matrix(64, 128), kind).weight()
    again = FrozenMatrix(once, kind).weight()
    # 4 bits: scales may move by the rounding of float32.
    assert torch.allclose(again, once, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weight", [torch.zeros(8, 64), torch.full((4, 64), -2.5), torch.eye(64)])
def test_flat_and_empty_spans_are_exact(kind, weight):
    """But for the 11 bits of a scale of 8-bit numbers; where all is 0 nothing is divided by it."""
    assert torch.allclose(
        FrozenMatrix(weight, kind).weight(), weight, rtol=2**-11 if kind == "int8" else 0, atol=0
    )


def test_bits_are_what_they_are_called():
    weight = matrix(1024, 1024)
    half = 16 * weight.numel() / 8
    assert FrozenMatrix(weight, "int8").nbytes <= half * (8 + 16 / SPAN + 0.01) / 16
    assert FrozenMatrix(weight, "nf4").nbytes <= half * (4 + 8 / SPAN + 64 / SPAN / GROUP + 0.02) / 16


@pytest.mark.parametrize("kind", KINDS)
def test_a_large_matrix_is_turned_back_piece_by_piece(kind, monkeypatch):
    weight = matrix(300, 130)
    whole = FrozenMatrix(weight, kind)
    monkeypatch.setitem(AT_ONCE, "cpu", 20 * SPAN)
    assert torch.equal(whole.weight(), FrozenMatrix(weight, kind).weight())


# --- products ---


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bias", [True, False])
def test_slopes_are_those_of_the_floats_it_stands_for(kind, bias):
    torch.manual_seed(0)
    linear = Linear(96, 40, bias=bias)
    held = FrozenLinear(linear, kind)
    plain = held.plain()
    x, y = (torch.randn(2, 3, 96, generator=torch.Generator().manual_seed(4)).requires_grad_() for _ in "xy")
    got, wanted = held(x), plain(y)
    assert torch.allclose(got, wanted, rtol=1e-6, atol=1e-6)
    got.square().sum().backward()
    wanted.square().sum().backward()
    assert torch.allclose(x.grad, y.grad, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_s_slopes_are_those_of_a_rounded_float_base(kind):
    held, floats = shake(frozen(kind)), tiny()
    round_matrices(floats, kind)
    attach(floats, LoRA(rank=2))
    learned = {name: p for name, p in held.named_parameters() if p.requires_grad}
    floats.load_state_dict({name: p.detach() for name, p in learned.items()}, strict=False)
    for model in (held, floats):
        model(IDS).logits.square().mean().backward()
    wanted = {name: p.grad for name, p in floats.named_parameters() if p.requires_grad}
    assert wanted.keys() == learned.keys()
    for name, parameter in learned.items():
        assert torch.allclose(parameter.grad, wanted[name], rtol=1e-4, atol=1e-6), name


@pytest.mark.parametrize("kind", KINDS)
def test_floats_are_not_kept_for_the_way_back(kind):
    held = FrozenMatrix(matrix(64, 128), kind)
    x = torch.randn(3, 128, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        held(x)
    assert sum(one.nbytes for one in kept) == held.nbytes


def test_products_run_in_autocast_s_type_and_slopes_in_the_input_s():
    held = FrozenMatrix(matrix(64, 128), "nf4")
    x = torch.randn(3, 128, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        out = held(x)
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    assert x.grad.dtype == torch.float32
    wanted = held.weight().sum(0)
    assert torch.allclose(x.grad, wanted.expand(3, -1), rtol=2e-2, atol=2e-2 * float(wanted.abs().max()))


# --- a whole model ---


def test_every_matrix_of_a_layer_is_held_and_only_adapters_learn():
    model = frozen("nf4", targets=("query",))
    layers = {
        name for name, one in model.named_modules() if isinstance(one, nn.Linear) and one is not model.head
    }
    held = {name for name, one in model.named_modules() if isinstance(one, FrozenLinear)}
    assert held == layers
    assert sum(isinstance(one, AdaptedLinear) for one in model.modules()) == 2
    assert all(".lora_" in name for name, p in model.named_parameters() if p.requires_grad)
    assert not any("digits" in name for name in model.state_dict())
    shake(model)(IDS).logits.sum().backward()
    Optimizer(model, OptimConfig(lr=1e-2, optimizer="adamw"), steps=1).step(0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_takes_less_memory(kind):
    def taken(model):
        return sum(one.nbytes for one in (*model.parameters(), *model.buffers()))

    def of(kind):
        model = Transformer(decoder(layers=2, dim=256, heads=4, context=16, vocab_size=40))
        attach(model, LoRA(rank=1, frozen=kind), frozen_dtype=torch.bfloat16)
        return model

    usual, held = of(None), of(kind)
    matrices = sum(p.numel() for name, p in usual.named_parameters() if p.dtype == torch.bfloat16)
    # One scale of 16 bits for 64 weights; or one of 8 bits, two floats for 256 of them, and a table of 2 KiB a matrix.
    each = {"int8": (8 + 16 / SPAN) / 8, "nf4": (4 + 8 / SPAN) / 8}[kind]
    few = 8 * (2048 + 256)
    assert frozen_bytes(usual) == 0 < frozen_bytes(held)
    assert frozen_bytes(held) == pytest.approx(matrices * each, abs=few)
    assert taken(usual) - taken(held) == pytest.approx(matrices * (2 - each), abs=few)


@pytest.mark.parametrize("kind", KINDS)
def test_off_taken_off_merged_and_copied_it_computes_what_it_did(kind):
    rounded = tiny()
    round_matrices(rounded, kind)
    with torch.no_grad():
        base = rounded(IDS).logits
        model = shake(frozen(kind))
        tuned = model(IDS).logits
        assert not torch.allclose(tuned, base, atol=1e-3)
        with without_adapters(model):
            assert torch.allclose(model(IDS).logits, base, atol=1e-5)
        assert torch.allclose(merged_copy(model, torch.float32)(IDS).logits, tuned, atol=1e-4)
        assert frozen_bytes(writer_of(model)) == 0 < frozen_bytes(model)
        merge(model)
        assert torch.allclose(model(IDS).logits, tuned, atol=1e-4)
        assert all(p.requires_grad for p in model.parameters())
        model = shake(frozen(kind))
        detach(model)
        assert torch.allclose(model(IDS).logits, base, atol=1e-5)


def test_weights_and_shapes_are_told_as_if_they_were_floats():
    plain = {name: p.shape for name, p in tiny().named_parameters()}
    model = frozen("nf4")
    assert {name: w.shape for name, w in weights_of(model)} == plain
    assert plain.items() <= shapes_of(model).items()


COMPILED = """
import torch
from stockpot.model.adapters import FrozenLinear
from stockpot.model.linear import Linear

for kind in ("int8", "nf4"):
    held = FrozenLinear(Linear(64, 64, bias=False), kind)
    x, y = (torch.linspace(-1, 1, 128).view(2, 64).requires_grad_() for _ in "xy")
    torch.compile(held, backend="aot_eager", fullgraph=True)(x).sum().backward()
    held(y).sum().backward()
    assert torch.allclose(x.grad, y.grad), kind
"""


@pytest.mark.slow
def test_a_held_layer_compiles_without_a_break():
    """In a process without the shape checks, which the compiler cannot trace within a backward pass of our own."""
    done = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_gpu_holds_and_multiplies_as_a_cpu_does(kind, shape):
    here = FrozenMatrix(matrix(*shape), kind)
    there = FrozenMatrix(matrix(*shape).cuda(), kind)
    assert here.nbytes == there.nbytes
    # the same digits, but where a weight lies on the border of two and is rounded to the other one
    wanted, got = here.weight(), there.weight().cpu()
    differ = ~torch.isclose(got, wanted, rtol=1e-4, atol=1e-6)
    assert differ.float().mean() < 1e-3
    x = torch.randn(3, shape[1], generator=torch.Generator().manual_seed(5))
    near, far = x.clone().requires_grad_(), x.cuda().requires_grad_()
    out = there(far)
    torch.testing.assert_close(out.cpu(), x @ got.T, rtol=1e-4, atol=1e-4)
    out.sum().backward()
    (near @ got.T).sum().backward()
    torch.testing.assert_close(far.grad.cpu(), near.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
def test_a_gpu_s_adapters_learn_beside_a_held_base_as_on_a_cpu(kind):
    def losses(device):
        model = frozen(kind, tiny()).to(device)  # the same digits: a card may round one on a border otherwise
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
        ids = torch.randint(0, 40, (8, 16), generator=torch.Generator().manual_seed(6)).to(device)
        found = []
        for _ in range(8):
            logits = model(ids[:, :-1]).logits.flatten(0, 1)
            loss = nn.functional.cross_entropy(logits, ids[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            found.append(loss.item())
        return found

    on_cpu = losses("cpu")
    assert on_cpu[-1] < on_cpu[0]
    assert losses("cuda") == pytest.approx(on_cpu, rel=1e-3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("least", [1e-44, 1e-30])
def test_a_row_of_almost_nothing_spoils_no_other(kind, least):
    """The ratio of two rows' scales may be more than float32 can hold."""
    weight = matrix(8, 64)
    weight[3] = least
    off = (FrozenMatrix(weight, kind).weight() - weight).abs().amax(1)
    assert (off <= 0.25 * weight.abs().amax(1).clamp(min=1e-15)).all()
