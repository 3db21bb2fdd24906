# mypy: disable-error-code="no-untyped-call, no-untyped-def, untyped-decorator"
"""Muon's steps around its products on a GPU: momentum, size and type in two passes over memory, weights in one.

torch's operations go over each number five times as often, and want a copy of all gradients (figures in
``benchmarks/results/gpu.md``). Matrices of one shape lie scattered, so that kernels are told their addresses. Imported on GPUs
only: Triton comes with torch's CUDA builds.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["apply", "gather", "suits"]

BLOCK = 4096  # numbers of a program
ALIGNED = 16  # bytes


@triton.jit
def _numbers(addresses, part, at, inside):
    """Read float32 numbers of a matrix; of one that is nowhere, zeros."""
    address = tl.load(addresses + part)
    numbers = tl.multiple_of(address.to(tl.pointer_type(tl.float32)), 16)
    return tl.load(numbers + at, mask=inside & (address != 0), other=0.0)


@triton.jit
def _remember(addresses, momenta, squares, size, keep, block: tl.constexpr):
    part, first = tl.program_id(0), tl.program_id(1)
    at = first * block + tl.arange(0, block)
    inside = at < size
    slope = _numbers(addresses, part, at, inside)
    here = momenta + part.to(tl.int64) * size + at
    old = tl.load(here, mask=inside, other=0.0)
    new = old + (slope - old) * (1.0 - keep)
    tl.store(here, new, mask=inside)
    blend = slope + (new - slope) * keep
    tl.store(squares + part * tl.num_programs(1) + first, tl.sum(blend * blend))


@triton.jit
def _blend(addresses, momenta, sizes, out, size, keep, block: tl.constexpr):
    part = tl.program_id(0)
    at = tl.program_id(1) * block + tl.arange(0, block)
    inside = at < size
    slope = _numbers(addresses, part, at, inside)
    here = part.to(tl.int64) * size + at
    new = tl.load(momenta + here, mask=inside, other=0.0)
    unit = (slope + (new - slope) * keep) / tl.load(sizes + part)
    tl.store(out + here, unit.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _change(addresses, updates, size, keep, step, block: tl.constexpr):
    part = tl.program_id(0)
    at = tl.program_id(1) * block + tl.arange(0, block)
    inside = at < size
    change = tl.load(updates + part.to(tl.int64) * size + at, mask=inside, other=0.0).to(tl.float32)
    weights = tl.multiple_of(tl.load(addresses + part).to(tl.pointer_type(tl.float32)), 16)
    old = tl.load(weights + at, mask=inside, other=0.0)
    tl.store(weights + at, old * keep - change * step, mask=inside)


def suits(tensors: Sequence[Tensor | None]) -> bool:
    """Tell whether these kernels know such weights and gradients; None: there is none."""
    return all(
        one is None or (one.dtype == torch.float32 and one.is_contiguous() and one.data_ptr() % ALIGNED == 0)
        for one in tensors
    )


def gather(
    gradients: Sequence[Tensor | None], momenta: Tensor, out: Tensor, *, keep: float, margin: float
) -> None:
    """Update momenta from gradients; write Nesterov's blend of both to ``out``, each matrix over ``margin`` times its norm.

    Args:
        gradients: one a part ``(rows, columns)``, which ``suits`` knows; None: zeros.
        momenta: float32 ``(parts, rows, columns)``, changed in place.
        out: like ``momenta``, float32 or 16 bits.
        keep: share of the old momentum kept.
        margin: factor on the Frobenius norm.
    """
    size = momenta[0].numel()
    addresses = _addresses(gradients, momenta.device)
    grid = (len(gradients), triton.cdiv(size, BLOCK))
    squares = torch.empty(grid, dtype=torch.float32, device=momenta.device)
    _remember[grid](addresses, momenta, squares, size, keep, block=BLOCK)
    sizes = squares.sum(1).sqrt_().mul_(margin).clamp_(min=1e-20)
    _blend[grid](addresses, momenta, sizes, out, size, keep, block=BLOCK)


def apply(weights: Sequence[Tensor], updates: Tensor, *, keep: float, step: float) -> None:
    """Set each weight ``(rows, columns)`` to ``keep`` times itself less ``step`` times its update; in place.

    Args:
        weights: one a part, which ``suits`` knows.
        updates: ``(parts, rows, columns)``, contiguous.
        keep: of the weight.
        step: factor on the update.
    """
    size = updates[0].numel()
    grid = (len(weights), triton.cdiv(size, BLOCK))
    _change[grid](_addresses(weights, updates.device), updates, size, keep, step, block=BLOCK)


def _addresses(tensors: Sequence[Tensor | None], device: torch.device) -> Tensor:
    told = torch.tensor([0 if one is None else one.data_ptr() for one in tensors], dtype=torch.int64)
    return told.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else told
