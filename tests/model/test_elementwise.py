"""The hand-written backward passes of what works on each number or head alone give torch's gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stockpot.model.config import StackConfig
from stockpot.model.elementwise import rms_norm, swiglu, turned_heads
from stockpot.model.positions import rotary_table, rotate


def with_gradients(run: object, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    out = run(*inputs)  # type: ignore[operator]
    slope = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view(out.shape).to(out.dtype)
    return [out, *torch.autograd.grad(out, inputs, slope)]


@pytest.mark.parametrize("has_weight", [True, False])
def test_the_norm_and_its_gradients_equal_torchs(has_weight: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 6, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(6, dtype=torch.float64, requires_grad=True) if has_weight else None
    inputs = (x, weight) if weight is not None else (x,)
    ours = with_gradients(lambda *_: rms_norm(x, weight, 1e-2), inputs)
    theirs = with_gradients(lambda *_: F.rms_norm(x, (6,), weight, 1e-2), inputs)
    for own, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(own, expected, atol=1e-13, rtol=1e-12)
    assert torch.autograd.gradcheck(lambda *_: rms_norm(x, weight, 1e-2), inputs)


def test_the_norm_keeps_the_type_of_what_it_is_given() -> None:
    x = torch.randn(4, 8).bfloat16().requires_grad_()
    weight = torch.ones(8, requires_grad=True)
    for own in (None, weight, weight.detach().bfloat16().requires_grad_()):
        out = rms_norm(x, own, 1e-6)
        out.sum().backward()
        assert out.dtype == torch.bfloat16
        torch.testing.assert_close(out, F.rms_norm(x, (8,), None, 1e-6))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_norm_in_short_numbers_is_near_the_exact_one(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.randn(5, 16, dtype=torch.float64, requires_grad=True)
    short = x.detach().to(dtype).requires_grad_()
    exact = with_gradients(lambda y: rms_norm(y, None, 1e-6), (x,))
    found = with_gradients(lambda y: rms_norm(y, None, 1e-6), (short,))
    bound = (
        4 * torch.finfo(dtype).eps
    )  # of values of about 1: the input's, the factor's, the result's rounding
    for own, expected in zip(found, exact, strict=True):
        torch.testing.assert_close(own.double(), expected, atol=bound, rtol=bound)


def angles(seq: int, *, head_dim: int, share: float, dtype: torch.dtype) -> Tensor:
    config = StackConfig(dim=head_dim, heads=1, head_dim=head_dim, rope_fraction=share)
    like = torch.zeros(1, dtype=dtype)
    return rotary_table(config, 10_000.0, None).rows((0, seq), like, seq, dtype)[None, :, None]


@pytest.mark.parametrize("share", [None, 0.5, 1.0])
def test_turned_heads_and_their_gradients_equal_the_plain_steps(share: float | None) -> None:
    torch.manual_seed(0)
    wide = torch.randn(2, 5, 3 * 8 + 4, dtype=torch.float64, requires_grad=True)  # values stand behind
    gains = torch.randn(3, 8, dtype=torch.float64, requires_grad=True)
    table = None if share is None else angles(5, head_dim=8, share=share, dtype=torch.float64)

    def ours(wide: Tensor, gains: Tensor) -> Tensor:
        return turned_heads(wide[..., :24].view(2, 5, 3, 8), gains, table, 1e-2)

    def plain(wide: Tensor, gains: Tensor) -> Tensor:
        heads = F.rms_norm(wide[..., :24].view(2, 5, 3, 8), (8,), None, 1e-2) * gains
        return heads if table is None else rotate(heads, table)

    for own, expected in zip(
        with_gradients(ours, (wide, gains)), with_gradients(plain, (wide, gains)), strict=True
    ):
        torch.testing.assert_close(own, expected, atol=1e-13, rtol=1e-12)
    assert torch.autograd.gradcheck(ours, (wide, gains))


def test_swiglu_and_its_gradient_equal_the_plain_steps() -> None:
    torch.manual_seed(0)
    both = torch.randn(3, 5, 12, dtype=torch.float64, requires_grad=True)

    def plain(both: Tensor) -> Tensor:
        gate, value = both.chunk(2, -1)
        return F.silu(gate) * value

    for own, expected in zip(with_gradients(swiglu, (both,)), with_gradients(plain, (both,)), strict=True):
        torch.testing.assert_close(own, expected, atol=1e-13, rtol=1e-12)
    assert torch.autograd.gradcheck(swiglu, (both,))


def test_short_numbers_stay_as_near_to_the_truth_as_with_the_plain_steps() -> None:
    torch.manual_seed(0)
    exact = torch.randn(2, 5, 3, 8, dtype=torch.float64, requires_grad=True)
    gains = torch.ones(3, 8, dtype=torch.float64)
    table = angles(5, head_dim=8, share=1.0, dtype=torch.float64)
    for run, plain in (
        (
            lambda x: turned_heads(x, gains.to(x.dtype), table.to(x.dtype), 1e-6),
            lambda x: rotate(F.rms_norm(x, (8,), None, 1e-6), table.to(x.dtype)),
        ),
        (swiglu, lambda x: F.silu(x[..., :4]) * x[..., 4:]),
    ):
        truth = with_gradients(plain, (exact,))
        short = exact.detach().bfloat16().requires_grad_()
        for expected, own, other in zip(
            truth, with_gradients(run, (short,)), with_gradients(plain, (short,)), strict=True
        ):
            assert own.dtype == torch.bfloat16
            error, usual = ((x.double() - expected).norm() / expected.norm() for x in (own, other))
            assert error < max(1.5 * usual, 0.01)  # a rounding to 8 bits is 0.2 to 0.4 %, and a few add up
