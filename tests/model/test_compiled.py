"""The compiled steps of a layer give what torch's operations give, forwards and backwards."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stockpot.model import compiled
from stockpot.model.config import StackConfig, decoder
from stockpot.model.elementwise import rms_norm, swiglu, turned_heads
from stockpot.model.positions import rotary_table
from stockpot.model.transformer import Transformer
from stockpot.native.training import training_kernels
from stockpot.train.fused import linear_cross_entropy
from stockpot.train.muon import Matrix, Muon

pytestmark = pytest.mark.skipif(training_kernels() is None, reason="the kernels could not be compiled here")
TYPES = [torch.float32, torch.bfloat16]


def with_gradients(run: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> list[Tensor]:
    out = run(*inputs)
    slope = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view(out.shape).to(out.dtype)
    return [out, *torch.autograd.grad(out, inputs, slope)]


def check(
    ours: Callable[..., Tensor], exact: Callable[..., Tensor], *inputs: Tensor, dtype: torch.dtype
) -> None:
    """Compare with torch in float64; what may differ is a few roundings of the type, relative to the whole."""
    wide = tuple(x.detach().double().requires_grad_() for x in inputs)
    bound = 16 * torch.finfo(dtype).eps
    for own, expected in zip(with_gradients(ours, inputs), with_gradients(exact, wide), strict=True):
        assert own.isfinite().all()
        assert (own.double() - expected).norm() <= bound * expected.norm() + 1e-12


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(dtype).requires_grad_()


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("dim", [5, 64])
@pytest.mark.parametrize("kind", ["rms", "layer", "layer with bias"])
def test_the_norms(kind: str, dim: int, dtype: torch.dtype) -> None:
    x, weight, bias = random(3, 7, dim, dtype=dtype), random(dim, seed=1), random(dim, seed=2)
    if kind == "rms":
        check(
            lambda x, w: compiled.norm(x, w, None, 1e-5, centred=False, dtype=x.dtype),
            lambda x, w: rms_norm(x, w, 1e-5), x, weight, dtype=dtype,
        )  # fmt: skip
        return
    shift = (bias,) if kind == "layer with bias" else ()
    check(
        lambda x, w, *b: compiled.norm(x, w, b[0] if b else None, 1e-5, centred=True, dtype=x.dtype),
        lambda x, w, *b: F.layer_norm(x, (dim,), w, b[0] if b else None, 1e-5), x, weight, *shift, dtype=dtype,
    )  # fmt: skip


def test_what_only_a_product_reads_is_rounded_at_once() -> None:
    x, weight = random(4, 8), random(8)
    out = compiled.norm(x, weight, None, 1e-5, centred=False, dtype=torch.bfloat16)
    assert out.dtype == torch.bfloat16
    out.sum().backward()
    assert x.grad is not None and x.grad.dtype == torch.float32


@pytest.mark.parametrize("place", ["pre", "post", "sandwich"])
def test_the_stream_between_layers_keeps_its_type(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ids, found = torch.arange(12).view(2, 6), []
    for is_compiled in (True, False):
        model = Transformer(decoder(layers=2, dim=16, heads=2, context=8, vocab_size=20, norm_place=place))
        types: list[torch.dtype] = []
        for block in model.decoder.layers if model.decoder is not None else ():
            block.register_forward_hook(lambda _, __, out, seen=types: seen.append(out.dtype))
        with monkeypatch.context() as patch, torch.autocast("cpu", torch.bfloat16):
            if not is_compiled:
                patch.setattr(compiled, "suits", lambda *_: False)
            found.append([*types, model(ids).hidden.dtype])
        assert types == [torch.float32, torch.float32]
    assert found[0] == found[1]


@pytest.mark.parametrize("dtype", TYPES)
def test_the_activations(dtype: torch.dtype) -> None:
    x = (random(5, 34, dtype=dtype).detach() * 4).requires_grad_()
    check(compiled.swiglu, swiglu, x, dtype=dtype)
    check(compiled.gelu, F.gelu, x, dtype=dtype)


def test_activations_of_extreme_numbers_are_those_of_torch() -> None:
    x = torch.tensor([-1e4, -90.0, -30.0, 0.0, 30.0, 90.0, 1e4, math.inf], requires_grad=True)
    torch.testing.assert_close(compiled.gelu(x[:-1]), F.gelu(x[:-1]))
    both = torch.cat((x, torch.ones_like(x))).detach().requires_grad_()
    torch.testing.assert_close(compiled.swiglu(both), F.silu(x))
    assert compiled.gelu(torch.tensor([math.nan], requires_grad=True)).isnan().all()


def apart(
    flat: Tensor, q_gain: Tensor | None, k_gain: Tensor | None, angles: Tensor | None, heads: tuple[int, int]
) -> list[Tensor]:
    """Cut, normalise and rotate with the twins made of torch's operations."""
    head_dim = flat.shape[-1] // (heads[0] + 2 * heads[1])
    parts = flat.view(*flat.shape[:2], -1, head_dim).split((sum(heads), heads[1]), dim=2)
    both = parts[0]
    if q_gain is not None and k_gain is not None:
        gains = torch.cat((q_gain.expand(heads[0], -1), k_gain.expand(heads[1], -1)))
        both = turned_heads(both, gains, None if angles is None else angles.to(both.dtype), 1e-5)
    return [x.transpose(1, 2) for x in (*both.split(heads, dim=2), parts[1])]


def documents(seq: int, *, causal: bool) -> Tensor:
    number = torch.arange(seq)[None] // torch.tensor([[5], [70]])
    later = torch.ones(seq, seq, dtype=torch.bool).triu(1) & causal
    return ((number[:, :, None] == number[:, None]) & ~later)[:, None]


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("seen", ["all", "causal", "documents", "documents both ways", "keys"])
@pytest.mark.parametrize(("heads", "head_dim"), [((4, 2), 32), ((3, 3), 20), ((2, 1), 16)])
@pytest.mark.parametrize("seq", [9, 75, 200])
def test_attention(seq: int, heads: tuple[int, int], head_dim: int, seen: str, dtype: torch.dtype) -> None:
    flat = random(2, seq, (heads[0] + 2 * heads[1]) * head_dim, dtype=dtype)
    gains = (random(head_dim, seed=1), random(head_dim, seed=2))
    config = StackConfig(dim=head_dim, heads=1, head_dim=head_dim, rope_fraction=0.5)
    angles = rotary_table(config, 100.0, None).upto(seq, torch.zeros(1))[:seq].view(1, seq, 1, -1)
    causal = seen in ("causal", "documents")
    mask = None
    if seen.startswith("documents"):
        mask = documents(seq, causal=causal)
    elif seen == "keys":
        mask = (torch.arange(seq).expand(2, 1, 1, seq) < 6).contiguous()

    def exact(flat: Tensor, q_gain: Tensor, k_gain: Tensor) -> Tensor:
        q, k, v = apart(flat, q_gain, k_gain, angles, heads)
        mixed = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=causal and mask is None, scale=0.2, enable_gqa=True
        )
        return mixed.transpose(1, 2).flatten(2)

    def ours(flat: Tensor, q_gain: Tensor, k_gain: Tensor) -> Tensor:
        return compiled.attend(
            flat, heads, gains=(q_gain, k_gain), angles=angles, mask=mask, causal=causal, scale=0.2, eps=1e-5
        )

    check(ours, exact, flat, *gains, dtype=dtype)

    def in_two_calls(flat: Tensor, q_gain: Tensor, k_gain: Tensor) -> Tensor:
        q, k, v = compiled.place(flat, heads, gains=(q_gain, k_gain), angles=angles, scale=0.2, eps=1e-5)
        mixed = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=causal and mask is None, scale=1.0, enable_gqa=True
        )
        return mixed.transpose(1, 2).flatten(2)

    check(in_two_calls, exact, flat, *gains, dtype=dtype)


def test_attention_without_norms_and_rotation() -> None:
    flat, heads = random(2, 33, 6 * 16), (2, 2)

    def exact(flat: Tensor) -> Tensor:
        q, k, v = apart(flat, None, None, None, heads)
        return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)

    def ours(flat: Tensor) -> Tensor:
        return compiled.attend(
            flat, heads, gains=None, angles=None, mask=None, causal=True, scale=0.25, eps=0.0
        )

    check(ours, exact, flat, dtype=torch.float32)


def test_who_sees_nothing_gathers_zeros_and_learns_nothing() -> None:
    flat, mask = random(1, 4, 3 * 8), torch.ones(1, 1, 4, 4, dtype=torch.bool)
    mask[..., 2, :] = False
    out = compiled.attend(flat, (1, 1), gains=None, angles=None, mask=mask, causal=False, scale=1.0, eps=0.0)
    assert (out[0, 2] == 0).all() and (out[0, 1] != 0).any()
    (slope,) = torch.autograd.grad(out.sum(), flat)
    assert slope.isfinite().all() and (slope[0, 2, :8] == 0).all()


@pytest.mark.parametrize("z_loss", [0.0, 0.1])
def test_cross_entropy_and_its_slope(z_loss: float, monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, weight = random(40, 8), random(19, 8, seed=1)
    labels = torch.arange(40) % 19
    labels[::7] = -100
    found = []
    for is_compiled in (True, False):
        with monkeypatch.context() as patch:
            if not is_compiled:
                patch.setattr(compiled, "suits", lambda *_: False)
            loss = linear_cross_entropy(hidden, weight, labels, z_loss=z_loss)
        found.append(
            [loss.total, loss.nats, loss.correct, *torch.autograd.grad(loss.total, (hidden, weight))]
        )
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_a_label_outside_of_the_vocabulary_is_refused() -> None:
    for label in (3, -1):
        with pytest.raises(IndexError, match="vocabulary"):
            compiled.judge(torch.zeros(1, 3), torch.tensor([label]), z_loss=0.0, needs_slope=True)


@pytest.mark.parametrize("dtype", TYPES)
def test_muons_step(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for is_compiled in (True, False):
        weights = [random(6, 10, seed=seed) for seed in range(3)]
        muon = Muon([Matrix(w, (2, 4)) for w in weights], momentum=0.8, iterations=5, dtype=dtype)
        with monkeypatch.context() as patch:
            if not is_compiled:
                patch.setattr(compiled, "suits", lambda *_: False)
            for step in range(3):
                for index, weight in enumerate(weights):
                    weight.grad = (
                        None if index == 1 and step else random(6, 10, seed=9 + step + index).detach()
                    )
                muon.step(0.1, weight_decay=0.1, is_cautious=False)
        found.append([*weights, *muon.state_dict()["momentum"]])
    for ours, theirs in zip(*found, strict=True):
        share = (
            0.05 if dtype == torch.bfloat16 else 1e-5
        )  # five products of small matrices, each rounded to 8 bits
        assert (ours - theirs).norm() <= share * theirs.norm()


def test_the_result_does_not_depend_on_the_threads() -> None:
    x, weight, before = random(500, 48), random(48), torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(
                with_gradients(
                    lambda x, w: compiled.norm(x, w, None, 1e-5, centred=False, dtype=x.dtype), (x, weight)
                )
            )
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))
