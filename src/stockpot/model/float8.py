"""Matrix products of training in 8-bit floats, on GPUs that multiply them twice as fast as bfloat16.

Each matrix is divided by its largest number, so that it fills the type's range: values and weights are rounded to 3
bits of fraction (E4M3), slopes to 2 with a wider range (E5M2). Weights, sums and what leaves a product stay as they
are. It decides nothing about which layers multiply so.

Source: Micikevicius et al. 2022, arXiv:2209.05433.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from stockpot.model.compiled import product_dtype

__all__ = ["are_fast", "multiply", "suit"]

SIDE = 16  # what the products' sides must be multiples of


def are_fast(device: torch.device) -> bool:
    """Tell whether a device has products of 8-bit floats (NVIDIA's, from compute capability 8.9)."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 9)


def suit(x: Tensor, weight: Tensor) -> bool:
    """Tell whether a linear layer's product can be computed so: in training in bfloat16, with sides that fit."""
    sides = (*weight.shape, x.numel() // max(x.shape[-1], 1))
    is_narrow = product_dtype(x) == torch.bfloat16
    return is_narrow and torch.is_grad_enabled() and all(side % SIDE == 0 < side for side in sides)


def multiply(
    x: Float[Tensor, "... inputs"], weight: Float[Tensor, "outputs inputs"]
) -> Float[Tensor, "... outputs"]:
    """Multiply rows with a matrix; the result is bfloat16, and the way back is computed in 8 bits, too."""
    out: Tensor = _Multiply.apply(x, weight)  # type: ignore[no-untyped-call]
    return out


class _Multiply(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        rows, of_rows = _rounded(x.reshape(-1, x.shape[-1]), torch.float8_e4m3fn)
        short, of_weight = _rounded(weight, torch.float8_e4m3fn)
        ctx.save_for_backward(rows, of_rows, short, of_weight)
        ctx.shape = x.shape
        return _product(rows, short.T, of_rows, of_weight).view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, Tensor | None]:
        rows, of_rows, weight, of_weight = ctx.saved_tensors
        rises, of_rises = _rounded(slope.reshape(-1, slope.shape[-1]), torch.float8_e5m2)
        to_x = to_weight = None
        if ctx.needs_input_grad[0]:
            to_x = _product(rises, _by_column(weight), of_rises, of_weight, exact=True).view(ctx.shape)
        if ctx.needs_input_grad[1]:
            to_weight = _product(rises.T.contiguous(), _by_column(rows), of_rises, of_rows, exact=True)
        return to_x, to_weight


def _rounded(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Round to ``dtype`` after scaling; also return what one unit of the result is worth."""
    top = torch.finfo(dtype).max
    unit = x.abs().amax().float().clamp(min=1e-30) / top
    return (x.float() / unit).clamp(-top, top).to(dtype), unit


def _product(a: Tensor, b: Tensor, of_a: Tensor, of_b: Tensor, *, exact: bool = False) -> Tensor:
    """Multiply ``(high, depth)`` by row with ``(depth, wide)`` by column; ``exact``: add up in float32 throughout."""
    found: Tensor = torch._scaled_mm(
        a, b, scale_a=of_a, scale_b=of_b, out_dtype=torch.bfloat16, use_fast_accum=not exact
    )
    return found


def _by_column(x: Tensor) -> Tensor:
    return x.T.contiguous().T
