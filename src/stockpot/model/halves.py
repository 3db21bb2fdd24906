"""Matrix products of training in halves, on CPUs whose vectors multiply them twice as fast as floats.

Such processors (AVX512-FP16) mostly have a matrix unit for bfloat16, too, which is faster; a virtual machine may hide
it. Weights, activations and slopes stay float32: only inside a product are numbers rounded, to 11 bits where bfloat16
has 8, with the power of two of each matrix taken out first. Figures in ``benchmarks/notes.md``.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from stockpot.native.training import Side, TrainingKernels, training_kernels

__all__ = ["again", "are_fastest", "are_here", "multiply", "multiplying", "suit"]

LEAST, LEAST_ROWS = 256, 128  # inputs and outputs, and rows, from which it pays
_IS_ON: ContextVar[bool] = ContextVar("halves", default=False)


@functools.cache
def are_here() -> bool:
    """Tell whether this machine has the kernels and they compute rightly what torch is asked as well."""
    found = training_kernels()
    if found is None or not found.has_halves:
        return False
    x, weight = torch.linspace(-3, 5, 37 * 67).sin().view(37, 67), torch.linspace(-1, 1, 70 * 67).view(70, 67)
    wanted = x @ weight.T
    error = _product(x, weight.T, _largest(x), _largest(weight)) - wanted
    return bool(error.norm() < 3e-3 * wanted.norm())


def are_fastest(device: torch.device, dtype: torch.dtype) -> bool:
    """Tell whether products in halves are the fastest on a device where ``dtype`` is the fastest for all of a step."""
    return device.type == "cpu" and dtype == torch.float32 and are_here()


@contextmanager
def multiplying() -> Iterator[None]:
    """Let linear layers that learn multiply in halves inside the block."""
    before = _IS_ON.set(True)
    try:
        yield
    finally:
        _IS_ON.reset(before)


def again() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Return what to compute a layer in, and what to compute it in again on the way back (``checkpoint``'s contexts)."""
    return nullcontext(), multiplying() if _IS_ON.get() else nullcontext()


def suit(x: Tensor, weight: Tensor) -> bool:
    """Tell whether a linear layer's product is to be computed in halves."""
    return (
        not torch.compiler.is_compiling()
        and _IS_ON.get()
        and x.device.type == "cpu"
        and torch.is_grad_enabled()
        and (x.requires_grad or weight.requires_grad)
        and x.dtype == torch.float32 == weight.dtype
        and min(weight.shape) >= LEAST
        and x.numel() >= LEAST_ROWS * x.shape[-1] > 0
    )


def multiply(
    x: Float[Tensor, "... inputs"], weight: Float[Tensor, "outputs inputs"]
) -> Float[Tensor, "... outputs"]:
    """Multiply rows with a matrix; the way back is computed in halves, too."""
    out: Tensor = _Multiply.apply(x, weight)  # type: ignore[no-untyped-call]
    return out


class _Multiply(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        ctx.sizes = _largest(rows), _largest(weight)
        ctx.save_for_backward(x, weight)
        return _product(rows, weight.T, *ctx.sizes).view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        of_x, of_weight = ctx.sizes
        rows, inputs = slope.reshape(-1, slope.shape[-1]), x.reshape(-1, x.shape[-1])
        size = _largest(rows)
        to_x = _product(rows, weight, size, of_weight).view(x.shape) if ctx.needs_input_grad[0] else None
        to_weight = _product(rows.T, inputs, size, of_x) if ctx.needs_input_grad[1] else None
        return to_x, to_weight


def _kernels() -> TrainingKernels:
    found = training_kernels()
    assert found is not None  # `are_here` was asked
    return found


def _largest(x: Tensor) -> float:
    x = x.contiguous()
    size: float = _kernels().largest(x.data_ptr(), x.numel(), torch.get_num_threads())
    return size


def _product(a: Tensor, b: Tensor, of_a: float, of_b: float) -> Tensor:
    """Multiply ``(high, depth)`` with ``(depth, wide)``, each contiguous or the transpose of what is."""
    a, b = _laid_out(a), _laid_out(b)
    (high, depth), wide = a.shape, b.shape[1]
    out = torch.empty(high, wide)
    left = Side(a.data_ptr(), max(a.stride()), a.stride(1) != 1, of_a)
    right = Side(b.data_ptr(), max(b.stride()), b.stride(1) == 1, of_b)
    if not _kernels().multiply_halves(
        left, right, high, wide, depth, out.data_ptr(), torch.get_num_threads()
    ):
        out.fill_(torch.nan)
    return out


def _laid_out(x: Tensor) -> Tensor:
    return x if x.is_contiguous() or x.T.is_contiguous() else x.contiguous()
