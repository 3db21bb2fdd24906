"""Looking up the vectors of ids in a large table that learns, on a CPU, with a gradient that is mostly not there.

torch's own clears a gradient as large as the table, of which a batch touches some hundred rows. This one lies in memory that
the system clears when it is first written to, so that it takes that of the rows alone. The numbers are the same.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from stockpot.device import LARGE_BLOCK, lazy_zeros

__all__ = ["Embedding"]


class Embedding(nn.Embedding):
    """``nn.Embedding`` without its options, which looks large tables up as this file says."""

    def forward(self, ids: Tensor) -> Tensor:
        """Return ``(…, dim)`` for ids ``(…)``."""
        weight = self.weight
        if (
            weight.device.type == "cpu"
            and weight.dtype == torch.float32
            and weight.nbytes >= LARGE_BLOCK
            and weight.requires_grad
            and torch.is_grad_enabled()
            and not torch.compiler.is_compiling()
        ):
            found: Tensor = _LookUp.apply(weight, ids)  # type: ignore[no-untyped-call]
            return found
        return super().forward(ids)


class _LookUp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, ids: Tensor) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.shape = weight.shape
        return F.embedding(ids, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None]:
        (ids,) = ctx.saved_tensors
        rows = slope.reshape(-1, slope.shape[-1])
        return lazy_zeros(ctx.shape).index_add_(0, ids.reshape(-1), rows), None
