"""The matrix product of a layer, for many rows and for few.

Writing a token multiplies every weight with a handful of rows. torch's usual CPU kernel reads memory slowly
then; the kernel of oneDNN, which torch carries too, does the same product up to twice as fast (figures in
``benchmarks/results/generate.md``). Where the usual kernel leaves half of a processor's registers idle, oneDNN's is
twice as fast for many rows, too (``benchmarks/results/judging.md``). Training and whatever else this way does not
cover go through torch as usual.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stockpot import device
from stockpot.model import float8, halves, rounded

__all__ = ["Linear", "multiply"]

FEW = 32  # rows up to which the other kernel is clearly faster
LARGE = 200_000  # weights from which it is; calling it costs more than the usual one
MUCH = 3_000_000  # products from which it is with more rows, where the usual one is slow


def _find_kernel() -> Callable[..., Tensor] | None:
    """Return oneDNN's linear layer where this build of torch has it and this processor gains from it."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return None
    found: Callable[..., Tensor] | None = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    return found


_KERNEL = _find_kernel()
_IS_SLOW = device.mkl_is_slow()  # the usual kernel


def _pays(rows: int, weights: int) -> bool:
    """Say whether oneDNN's kernel is the faster one for so many rows."""
    return weights >= LARGE if rows <= FEW else _IS_SLOW and rows * weights >= MUCH


def multiply(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Multiply ``(…, inputs)`` with ``weight`` ``(outputs, inputs)`` and add ``bias``.

    The two ways differ in rounding only (about one part in a million).
    """
    if (
        _KERNEL is not None
        and _pays(x.numel() // max(1, x.shape[-1]), weight.numel())
        and not torch.is_grad_enabled()
        and x.dtype == torch.float32 == weight.dtype
        and x.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu")
    ):
        return _KERNEL(x, weight, bias, "none", [], "")
    return F.linear(x, weight, bias)


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
