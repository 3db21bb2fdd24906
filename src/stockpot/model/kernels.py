"""Attention with a backward pass written by hand, for training on CPUs.

torch's own takes a third of a small model's training time on a CPU, for a twentieth of the arithmetic (figures in
``benchmarks/notes.md``). Decides how the arithmetic is cut and ordered and when that pays; what is computed is decided
by the callers.
"""

from __future__ import annotations

import functools
import os
import shutil
from importlib.util import find_spec
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = [
    "BUILDS_TRITON",
    "HAS_TRITON",
    "LONGEST",
    "attend_in_blocks",
    "finds_compiler",
    "trains_here",
    "trains_on_gpu",
]

HAS_TRITON = find_spec("triton") is not None  # torch's CUDA builds bring it, except on Windows


def finds_compiler() -> bool:
    """Tell whether Triton will find the C compiler that it starts its kernels with; it looks in these places."""
    return bool(os.environ.get("CC") or shutil.which("clang") or shutil.which("gcc"))


BUILDS_TRITON = HAS_TRITON and finds_compiler()

BLOCK = 128  # queries at a time: with causal attention, keys after a block are never looked at
LONGEST = (
    1024  # keys up to which keeping the weights for the backward pass is cheaper than computing them again
)

Heads = Float[Tensor, "batch heads seq head_dim"]
KeyHeads = Float[Tensor, "batch kv_heads keys head_dim"]


def trains_here(x: Tensor) -> bool:
    """Tell whether these kernels pay: a gradient will be asked for, on a CPU, and no compiler is at work."""
    return (
        x.requires_grad
        and x.device.type == "cpu"
        and torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
    )


def trains_on_gpu(x: Tensor) -> bool:
    """Tell whether our Triton kernels for training pay: a gradient may be asked for, on a GPU."""
    return BUILDS_TRITON and x.is_cuda and torch.is_grad_enabled()


def attend_in_blocks(
    queries: Heads,
    keys: KeyHeads,
    values: KeyHeads,
    *,
    mask: Bool[Tensor, "rows 1 viewers keys"] | None = None,
    causal: bool = False,
    scale: float,
) -> Heads:
    """Average the values by how well queries and keys match, and keep the weights for the backward pass.

    Products are computed, and scores rounded, in the type of ``queries``; the softmax inside is in float32.

    Args:
        queries: heads that share keys stand side by side.
        keys: one for each position that may be seen.
        values: what is averaged.
        mask: True = visible, one row for each query or one for all; ``None``: no restriction but ``causal``.
        causal: queries and keys are the same positions and later ones are hidden, by ``mask`` too if there is one.
        scale: factor on query · key.

    Source: Vaswani et al. 2017, arXiv:1706.03762, eq. 1; for the backward pass Dao et al. 2022, arXiv:2205.14135,
    appendix B.2.
    """
    mixed: Tensor = _BlockAttention.apply(queries, keys, values, mask, causal, scale)  # type: ignore[no-untyped-call]
    return mixed


class _BlockAttention(torch.autograd.Function):
    """Inside, all heads that share keys are one batch item: ``(items, group * seq, head_dim)``."""

    @staticmethod
    def forward(
        ctx: Any,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        mask: Tensor | None,
        causal: bool,
        scale: float,
    ) -> Tensor:
        grid = _Grid(queries, keys, causal, mask)
        keys, values = grid.keys(keys), grid.keys(values)
        hidden = None if mask is None else (mask.to(queries.dtype) - 1).mul_(torch.finfo(queries.dtype).max)
        mixed, split = grid.empty(queries)
        kept = []
        for block in grid.blocks:
            scores = torch.bmm(grid.rows(queries, block, scale), keys[:, block.seen].mT)
            grid.hide(scores, hidden, block)
            weights = torch.softmax(scores, -1)
            split[:, :, :, block.at].copy_(grid.split(torch.bmm(weights, values[:, block.seen])))
            kept.append(weights)
        ctx.save_for_backward(queries, keys, values, *kept)
        ctx.grid, ctx.scale = grid, scale
        return mixed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        queries, keys, values, *kept = ctx.saved_tensors
        grid: _Grid = ctx.grid
        to_queries = torch.empty_like(queries)
        split = grid.split_heads(to_queries)
        to_keys = torch.zeros_like(keys)
        to_values = torch.zeros_like(values)
        for block, weights in zip(grid.blocks, kept, strict=True):
            part = grid.rows(slope, block)
            to_values[:, block.seen] += torch.bmm(weights.mT, part)
            to_weights = torch.bmm(part, values[:, block.seen].mT)
            to_scores = torch._softmax_backward_data(to_weights, weights, -1, weights.dtype)
            change = grid.split(torch.bmm(to_scores, keys[:, block.seen]))
            torch.mul(change, ctx.scale, out=split[:, :, :, block.at])
            to_keys[:, block.seen] += torch.bmm(to_scores.mT, grid.rows(queries, block, ctx.scale))
        return to_queries, grid.unfold(to_keys), grid.unfold(to_values), None, None, None


class _Block:
    """Some queries, and which keys they can see."""

    def __init__(self, start: int, stop: int, seen: slice) -> None:
        self.at, self.seen = slice(start, stop), seen


class _Grid:
    """The sizes of one call and the ways its tensors are folded."""

    def __init__(self, queries: Tensor, keys: Tensor, causal: bool, mask: Tensor | None) -> None:
        self.batch, self.heads, self.seq, self.head_dim = queries.shape
        self.kv_heads, length = keys.shape[1:3]
        self.group, self.causal = self.heads // self.kv_heads, causal
        stops = (
            [min(start + BLOCK, self.seq) for start in range(0, self.seq, BLOCK)] if causal else [self.seq]
        )
        self.blocks = [
            _Block(start, stop, slice(_first_seen(mask, start, stop), stop) if causal else slice(0, length))
            for start, stop in zip([0, *stops[:-1]], stops, strict=True)
        ]

    def rows(self, heads: Tensor, block: _Block, scale: float = 1.0) -> Tensor:
        """Copy a block of ``(batch, heads, seq, head_dim)`` to ``(items, group * block, head_dim)``, scaled."""
        part = self.split_heads(heads)[:, :, :, block.at]
        out = heads.new_empty((self.batch * self.kv_heads, self.group * part.shape[3], self.head_dim))
        target = out.view(part.shape)
        if scale == 1.0:
            target.copy_(part)
        else:
            torch.mul(part, scale, out=target)
        return out

    def split(self, rows: Tensor) -> Tensor:
        """Look at ``(items, group * block, head_dim)`` as ``(batch, kv_heads, group, block, head_dim)``."""
        return rows.view(self.batch, self.kv_heads, self.group, -1, self.head_dim)

    def empty(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Make room for ``(batch, heads, seq, head_dim)``, the heads of a token side by side; also seen split."""
        room = like.new_empty((self.batch, self.seq, self.heads, self.head_dim)).transpose(1, 2)
        return room, self.split_heads(room)

    def split_heads(self, heads: Tensor) -> Tensor:
        """Look at ``(batch, heads, seq, head_dim)`` as ``(batch, kv_heads, group, seq, head_dim)``."""
        return heads.view(self.batch, self.kv_heads, self.group, self.seq, self.head_dim)

    def keys(self, heads: Tensor) -> Tensor:
        """Fold ``(batch, kv_heads, keys, head_dim)`` to ``(items, keys, head_dim)``."""
        return heads.reshape(-1, heads.shape[2], self.head_dim)

    def unfold(self, items: Tensor) -> Tensor:
        """Undo :meth:`keys`."""
        return items.view(self.batch, self.kv_heads, -1, self.head_dim)

    def hide(self, scores: Tensor, hidden: Tensor | None, block: _Block) -> None:
        """Make scores of what is not seen so low that their weight is 0; in place."""
        width = scores.shape[-1]
        if hidden is not None:
            by_head = scores.view(self.batch, self.heads, -1, width)
            by_head += hidden[:, :, block.at, block.seen]
        elif self.causal:
            own = block.at.stop - block.at.start
            corner = scores.view(scores.shape[0] * self.group, -1, width)[:, :, width - own :]
            corner += _later(own, scores.dtype)


def _first_seen(mask: Tensor | None, start: int, stop: int) -> int:
    """Give the first key that any of some queries sees: packed documents do not look at earlier ones."""
    if mask is None or mask.shape[2] == 1:
        return 0
    return int(mask[:, 0, start:stop, :stop].any(1).any(0).to(torch.uint8).argmax())


@functools.lru_cache(maxsize=8)
def _later(size: int, dtype: torch.dtype) -> Tensor:
    """Return what hides later positions: ``(size, size)``, minus infinity above the diagonal."""
    with torch.inference_mode(False):
        return torch.full((size, size), -torch.inf, dtype=dtype).triu_(1)
