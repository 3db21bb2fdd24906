# mypy: disable-error-code="no-untyped-call, no-untyped-def, untyped-decorator"
"""Adding to the stream and normalising it in training on a GPU, the way back in one pass over memory.

torch's compiler sums the slope of the gains in a kernel of its own, which reads everything a second time and down the columns:
a fiftieth of a training step (figures in ``benchmarks/results/gpu.md``). Here whoever has a row adds to its share of that sum at
once, and the stream's own slope is added on the way. Imported on GPUs only: Triton comes with torch's CUDA builds.
"""

from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.library import custom_op

__all__ = ["LONGEST", "added_norm", "norm_slopes"]

LONGEST = 8192  # numbers of a row, which one program holds
PROGRAMS = 1024  # about: eight on each multiprocessor of an H100, with 48 KiB on their way from memory


@triton.jit
def _slopes(
    slope, kept, x, gain, out, narrow, parts, rows, width, eps,
    lines: tl.constexpr, wide: tl.constexpr, both: tl.constexpr,
):  # fmt: skip
    at = tl.arange(0, wide)
    inside = at < width
    scale = tl.load(gain + at, mask=inside, other=0.0).to(tl.float32)
    sums = tl.zeros((wide,), tl.float32)
    first = tl.program_id(0).to(tl.int64) * lines
    for line in range(lines):
        here = (first + line) * width + at
        there = inside & (first + line < rows)
        value = tl.load(x + here, mask=there, other=0.0).to(tl.float32)
        rise = tl.load(slope + here, mask=there, other=0.0).to(tl.float32)
        other = tl.load(kept + here, mask=there, other=0.0).to(tl.float32)
        factor = tl.rsqrt(tl.sum(value * value) / width + eps)
        unit = value * factor
        sums += rise * unit
        rise *= scale
        # What lies along the row itself does not change its direction.
        found = (rise - unit * (tl.sum(rise * unit) / width)) * factor + other
        tl.store(out + here, found.to(out.dtype.element_ty), mask=there)
        if both:
            tl.store(narrow + here, found.to(narrow.dtype.element_ty), mask=there)
    tl.store(parts + tl.program_id(0) * width + at, sums, mask=inside)


@custom_op("stockpot::norm_slopes", mutates_args=())
def norm_slopes(
    slope: Tensor, kept: Tensor, x: Tensor, gain: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the slopes of what was normalised, in its own type and in ``dtype``, and of the gains.

    Args:
        slope: those of the normalised rows ``(…, dim)``.
        kept: those that reach ``x`` past the norm, in the type of ``x``.
        x: what was normalised ``(…, dim)``.
        gain: ``(dim,)``.
        eps: added to the mean square.
        dtype: of the second result, which is empty where it would be the first.

    Returns:
        slopes ``(…, dim)`` twice, and those of the gains in parts ``(programs, dim)`` float32, to be summed.
    """
    width = x.shape[-1]
    rows = x.numel() // width
    slope, kept, x = slope.contiguous(), kept.contiguous(), x.contiguous()
    out = torch.empty_like(x)
    both = dtype != x.dtype
    narrow = torch.empty_like(x, dtype=dtype) if both else x.new_empty(0)
    lines = _lines(rows)
    parts = torch.empty(triton.cdiv(rows, lines), width, dtype=torch.float32, device=x.device)
    wide = triton.next_power_of_2(width)
    _slopes[(len(parts),)](
        slope, kept, x, gain, out, narrow if both else out, parts, rows, width, eps,
        lines=lines, wide=wide, both=both, num_warps=min(max(wide // 256, 1), 16),
    )  # fmt: skip
    return out, narrow, parts


@norm_slopes.register_fake
def _(
    slope: Tensor, kept: Tensor, x: Tensor, gain: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    narrow = torch.empty_like(out, dtype=dtype) if dtype != x.dtype else x.new_empty(0)
    rows = x.numel() // x.shape[-1]
    return out, narrow, x.new_empty(-(-rows // _lines(rows)), x.shape[-1], dtype=torch.float32)


def _lines(rows: int) -> int:
    """Return how many rows a program takes, a power of two, so that few kernels are compiled."""
    return int(triton.next_power_of_2(max(rows // PROGRAMS, 1)))


def added_norm(
    x: Tensor, change: Tensor | None, gain: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return ``x + change``, and that divided by each row's root mean square and scaled, in ``dtype``.

    Args:
        x: the stream ``(…, dim)``, dim up to ``LONGEST``.
        change: what a sublayer adds to it ``(…, dim)``; None: nothing.
        gain: ``(dim,)``.
        eps: added to the mean square.
        dtype: of the second result.

    Source: Zhang & Sennrich 2019, arXiv:1910.07467, eq. 4.
    """
    found: tuple[Tensor, Tensor] = _AddedNorm.apply(x, change, gain, eps, dtype)
    return found


class _AddedNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, change: Tensor | None, gain: Tensor, eps: float, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        total = x.view_as(x) if change is None else x + change
        ctx.save_for_backward(total, gain)
        ctx.eps, ctx.change = eps, None if change is None else change.dtype
        normed = F.rms_norm(total, gain.shape, gain.to(total.dtype), eps)
        # ``to`` only where it does something: behind an idle one, torch 2.11's compiler loses the slope.
        return total, normed if normed.dtype == dtype else normed.to(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, kept: Tensor, slope: Tensor) -> tuple[Tensor | None, ...]:
        total, gain = ctx.saved_tensors
        to_x, narrow, parts = norm_slopes(slope, kept, total, gain, ctx.eps, ctx.change or total.dtype)
        to_change = None if ctx.change is None else narrow if ctx.change != total.dtype else to_x
        return to_x, to_change, parts.sum(0).to(gain.dtype), None, None
