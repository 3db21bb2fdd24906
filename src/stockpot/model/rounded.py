"""Matrix products of training in a shorter type, which keep the matrix itself for the way back and not its rounded copy.

Autocast rounds every weight once a forward pass and keeps all of the copies until the backward pass is through: half of the
weights' memory once more. Rounding a large matrix a second time costs little beside its products (figures in
``benchmarks/notes.md``). What is computed is the same, number for number.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["multiply", "suit"]

LARGE = 1 << 18  # weights from which it pays: a call costs some microseconds more than autocast's


def suit(x: Tensor, weight: Tensor) -> bool:
    """Tell whether a linear layer's product is to be computed this way: in training on a CPU, under autocast."""
    return (
        weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and weight.numel() >= LARGE
        and torch.is_autocast_enabled("cpu")
        and torch.is_grad_enabled()
        and (x.requires_grad or weight.requires_grad)
        and not torch.compiler.is_compiling()
    )


def multiply(
    x: Float[Tensor, "... inputs"],
    weight: Float[Tensor, "outputs inputs"],
    bias: Float[Tensor, " outputs"] | None = None,
) -> Float[Tensor, "... outputs"]:
    """Multiply rows with a matrix and add ``bias``, in autocast's type."""
    out: Tensor = _Multiply.apply(x, weight, bias, torch.get_autocast_dtype("cpu"))  # type: ignore[no-untyped-call]
    return out


class _Multiply(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
        short = x.to(dtype)
        ctx.save_for_backward(short, weight)
        ctx.dtype, ctx.bias_dtype = x.dtype, None if bias is None else bias.dtype
        return F.linear(short, weight.to(dtype), None if bias is None else bias.to(dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        rows = slope.reshape(-1, slope.shape[-1])
        of_x, of_weight, of_bias, _ = ctx.needs_input_grad
        to_x = (rows @ weight.to(rows.dtype)).view(x.shape).to(ctx.dtype) if of_x else None
        to_weight = (rows.T @ x.reshape(-1, x.shape[-1])).to(weight.dtype) if of_weight else None
        to_bias = rows.sum(0).to(ctx.bias_dtype) if of_bias else None
        return to_x, to_weight, to_bias, None
