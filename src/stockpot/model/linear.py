"""The matrix product of a layer, for many rows and for few.

Writing a token multiplies every weight with a handful of rows. torch's usual CPU kernel reads memory slowly
then; the kernel of oneDNN, which torch carries too, does the same product up to twice as fast (figures in
``benchmarks/results/generate.md``). Where the usual kernel leaves half of a processor's registers idle, oneDNN's is
twice as fast for many rows, too, in training as well (``benchmarks/results/judging.md``, ``pretraining.md``). Whatever
this way does not cover goes through torch as usual.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from stockpot import device
from stockpot.model import float8, halves, rounded

__all__ = ["Linear", "multiply", "product"]

FEW = 32  # rows up to which the other kernel is clearly faster
LARGE = 200_000  # weights from which it is; calling it costs more than the usual one
MUCH = 3_000_000  # products from which it is with more rows, where the usual one is slow


_KERNEL = device.onednn_linear()
_IS_SLOW = device.mkl_is_slow()  # the usual kernel


def _pays(rows: int, weights: int) -> bool:
    """Say whether oneDNN's kernel is the faster one for so many rows."""
    return weights >= LARGE if rows <= FEW else _IS_SLOW and rows * weights >= MUCH


def multiply(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Multiply ``(…, inputs)`` with ``weight`` ``(outputs, inputs)`` and add ``bias``.

    The ways differ in rounding only (about one part in a million).
    """
    learns = torch.is_grad_enabled()
    if (
        _KERNEL is None
        or (learns and not _IS_SLOW)
        or not _pays(x.numel() // max(1, x.shape[-1]), weight.numel())
        or not _suit(x, weight)
        or torch.is_autocast_enabled("cpu")
    ):
        return F.linear(x, weight, bias)
    if not learns:
        return _KERNEL(x, weight, bias, "none", [], "")
    out: Tensor = _Multiply.apply(x, weight, bias)  # type: ignore[no-untyped-call]
    return out


def product(
    left: Float[Tensor, "rows inner"], right: Float[Tensor, "inner columns"], out: Tensor | None = None
) -> Float[Tensor, "rows columns"]:
    """Multiply two matrices of one type, of which no gradient is wanted, outside of autocast; into ``out``, if given."""
    if _KERNEL is None or not _IS_SLOW or left.numel() * right.shape[1] < MUCH or not _suit(left, right):
        return torch.mm(left, right, out=out)
    made = _KERNEL(left, right.T, None, "none", [], "")
    return made if out is None else out.copy_(made)


def _suit(*tensors: Tensor) -> bool:
    """Tell whether oneDNN's kernel knows such tensors; parts of one that is split over processes it does not."""
    return not torch.compiler.is_compiling() and all(
        type(one) in (Tensor, nn.Parameter) and one.dtype == torch.float32 and one.device.type == "cpu"
        for one in tensors
    )


class _Multiply(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        assert _KERNEL is not None
        ctx.save_for_backward(x, weight)
        return _KERNEL(x, weight, bias, "none", [], "")

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        slopes, rows = slope.reshape(-1, slope.shape[-1]), x.reshape(-1, x.shape[-1])
        of_x, of_weight, of_bias = ctx.needs_input_grad
        to_x = product(slopes, weight).view(x.shape) if of_x else None
        to_weight = None
        if of_weight:  # the kernel likes the narrow matrix on the left
            is_wide = weight.shape[0] > weight.shape[1]
            to_weight = product(rows.T, slopes).T.contiguous() if is_wide else product(slopes.T, rows)
        return to_x, to_weight, slopes.sum(0) if of_bias else None


class Linear(nn.Linear):
    """``nn.Linear`` that multiplies with :func:`multiply`, or in training in a shorter type.

    Attributes:
        eight_bits: train with products in 8-bit floats where they suit (`model.float8`).
    """

    eight_bits = False

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(…, outputs)`` for ``(…, inputs)``."""
        if self.eight_bits and float8.suit(x, self.weight):
            out = float8.multiply(x, self.weight)
        elif halves.suit(x, self.weight):
            out = halves.multiply(x, self.weight)
        elif rounded.suit(x, self.weight):
            return rounded.multiply(x, self.weight, self.bias)
        else:
            return multiply(x, self.weight, self.bias)
        return out if self.bias is None else out + self.bias
