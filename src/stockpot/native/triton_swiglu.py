"""SwiGLU in training on a GPU, its way back in one pass over memory.

torch's compiler joins the slopes of gate and value by choosing between two formulas at every number, so that it reads
everything twice: 0.8 ms where 0.4 would do (figures in ``benchmarks/results/gpu.md``). Imported on GPUs only: Triton comes
with torch's CUDA builds.
"""

from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.library import custom_op

__all__ = ["swiglu", "swiglu_slopes"]

BLOCK = 1024


@triton.jit  # type: ignore[untyped-decorator]
def _slopes(wide, slope, out, width, block: tl.constexpr):  # type: ignore[no-untyped-def]
    start = tl.program_id(0).to(tl.int64) * width
    at = tl.program_id(1) * block + tl.arange(0, block)
    inside = at < width
    gate = tl.load(wide + 2 * start + at, mask=inside).to(tl.float32)
    value = tl.load(wide + 2 * start + width + at, mask=inside).to(tl.float32)
    rise = tl.load(slope + start + at, mask=inside).to(tl.float32)
    opened = tl.sigmoid(gate)
    to_gate = rise * value * opened * (1 + gate * (1 - opened))
    tl.store(out + 2 * start + at, to_gate.to(out.dtype.element_ty), mask=inside)
    tl.store(out + 2 * start + width + at, (rise * gate * opened).to(out.dtype.element_ty), mask=inside)


@custom_op("stockpot::swiglu_slopes", mutates_args=())
def swiglu_slopes(wide: Tensor, slope: Tensor) -> Tensor:
    """Return the slopes of ``silu(gate) * value`` ``(…, 2 * width)``, the gate's first.

    Args:
        wide: gate and value side by side ``(…, 2 * width)``, contiguous.
        slope: those of the result ``(…, width)``, contiguous.
    """
    out = torch.empty_like(wide)
    width = slope.shape[-1]
    grid = (slope.numel() // width, triton.cdiv(width, BLOCK))
    _slopes[grid](wide, slope, out, width, block=BLOCK)
    return out


@swiglu_slopes.register_fake
def _(wide: Tensor, slope: Tensor) -> Tensor:
    return torch.empty_like(wide)


def swiglu(wide: Tensor) -> Tensor:
    """Return ``silu(gate) * value`` ``(…, width)`` of gate and value side by side ``(…, 2 * width)``."""
    out: Tensor = _SwiGLU.apply(wide)  # type: ignore[no-untyped-call]
    return out


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, wide: Tensor) -> Tensor:
        ctx.save_for_backward(wide)
        gate, value = wide.chunk(2, dim=-1)
        return F.silu(gate) * value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        (wide,) = ctx.saved_tensors
        slopes: Tensor = swiglu_slopes(wide.contiguous(), slope.contiguous())
        return slopes
