"""Attention: every token gathers what it needs from the tokens it may see.

Decides how queries, keys and values are made (one fused product), normalised, rotated, grouped, cached and
combined. What a token may see and how distances are scored arrives ready made in a :class:`View`, one for all
layers of a kind.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from stockpot.model import compiled
from stockpot.model.cache import LayerCache, SlotCache
from stockpot.model.config import StackConfig
from stockpot.model.elementwise import turned_heads
from stockpot.model.flex import attend_in_documents
from stockpot.model.kernels import LONGEST, attend_in_blocks, trains_here, trains_on_gpu
from stockpot.model.linear import Linear
from stockpot.model.norms import RMSNorm, normalise
from stockpot.model.positions import rotate

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

__all__ = ["CrossAttention", "SelfAttention", "Trace", "View", "attend", "attend_openly"]

Heads = Float[Tensor, "batch heads seq head_dim"]
KeyHeads = Float[Tensor, "batch kv_heads keys head_dim"]
States = Float[Tensor, "batch seq dim"]
Weights = Float[Tensor, "batch heads seq keys"]


class View(NamedTuple):
    """What the layers of one kind see.

    Attributes:
        mask: bool ``(batch or 1, 1, seq, keys)``, True = visible; or a float bias
            ``(batch or 1, heads, seq, keys)``; ``None``: no restriction but ``causal``.
        causal: queries and keys are the same positions, and later ones are hidden; a mask hides them too.
        rotary: angles ``(batch or 1, seq, 1, 2 * rotary_dim)`` of the queries' positions.
        blocks: what is seen, for FlexAttention, instead of a mask.
    """

    mask: Tensor | None = None
    causal: bool = False
    rotary: Tensor | None = None
    blocks: BlockMask | None = None

    def as_bias(self, dtype: torch.dtype) -> View:
        """Return the same with what is hidden as a bias of −∞, so that it is not turned into one in every layer."""
        if self.mask is None or self.mask.dtype != torch.bool:
            return self
        bias = torch.zeros(self.mask.shape, dtype=dtype, device=self.mask.device)
        return self._replace(mask=bias.masked_fill_(~self.mask, -torch.inf))


@dataclass
class Trace:
    """What a watched stack did in its latest call.

    Attributes:
        hidden: the embeddings, then the hidden states after each layer ``(batch, seq, dim)``, before the
            final norm.
        attention: the weights of each layer ``(batch, heads, seq, keys)``.
        cross: the weights of each layer's cross-attention ``(batch, heads, seq, src)``.
    """

    hidden: list[Tensor] = field(default_factory=list)
    attention: list[Tensor] = field(default_factory=list)
    cross: list[Tensor] = field(default_factory=list)

    def clear(self) -> None:
        """Forget the call before."""
        self.hidden, self.attention, self.cross = [], [], []


def attend(
    queries: Heads,
    keys: KeyHeads,
    values: KeyHeads,
    view: View,
    *,
    scale: float,
    dropout: float = 0.0,
) -> Heads:
    """Average the values by how well queries and keys match, with torch's fused kernels or ours.

    A single query per row with grouped heads (decoding) treats the group as the query length: no kernel
    repeats keys then.
    """
    heads, kv_heads, seq = queries.shape[1], keys.shape[1], queries.shape[2]
    mask = view.mask
    if view.blocks is not None:
        return attend_in_documents(queries, keys, values, view.blocks, scale=scale)
    if not dropout and trains_here(queries) and keys.shape[2] <= LONGEST and _is_common(mask):
        return attend_in_blocks(queries, keys, values, mask=mask, causal=view.causal, scale=scale)
    if seq == 1 and heads != kv_heads and (mask is None or mask.shape[1] == 1):
        grouped = queries.reshape(queries.shape[0], kv_heads, heads // kv_heads, -1)
        out = F.scaled_dot_product_attention(
            grouped, keys, values, attn_mask=mask, dropout_p=dropout, scale=scale
        )
        return out.reshape(queries.shape)
    if mask is not None and heads != kv_heads and queries.is_cuda:  # only the slow kernel takes both there
        keys, values = (part.repeat_interleave(heads // kv_heads, 1) for part in (keys, values))
        kv_heads = heads
    causal = view.causal and mask is None
    if seq == 1:  # a condition of its own: torch's compiler has no truth value for it where lengths vary
        causal = False
    return F.scaled_dot_product_attention(
        queries,
        keys,
        values,
        attn_mask=mask,
        dropout_p=dropout,
        is_causal=causal,
        scale=scale,
        enable_gqa=heads != kv_heads,
    )


def _is_common(mask: Tensor | None) -> bool:
    """Whether all heads see the same, which is what our kernel knows."""
    return mask is None or (mask.dtype == torch.bool and mask.shape[1] == 1)


def attend_openly(
    queries: Heads,
    keys: KeyHeads,
    values: KeyHeads,
    view: View,
    *,
    scale: float,
    softcap: float | None = None,
    dropout: float = 0.0,
) -> tuple[Heads, Weights]:
    """Do what :func:`attend` does step by step, so that scores can be capped and weights be looked at.

    Source: Vaswani et al. 2017, arXiv:1706.03762, eq. 1; the cap: Gemma Team 2024, arXiv:2408.00118, §2.
    """
    group = queries.shape[1] // keys.shape[1]
    if group > 1:
        keys, values = keys.repeat_interleave(group, 1), values.repeat_interleave(group, 1)
    scores = (queries @ keys.transpose(-1, -2)).float() * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    hidden = torch.finfo(scores.dtype).min
    if view.mask is not None:
        is_bool = view.mask.dtype == torch.bool
        scores = scores.masked_fill(~view.mask, hidden) if is_bool else scores + view.mask
    elif view.causal:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(later, hidden)
    weights = scores.softmax(-1)
    mixed = F.dropout(weights, dropout) if dropout else weights
    return mixed.to(values.dtype) @ values, weights


class _Attention(nn.Module):
    """What self- and cross-attention share: head sizes, query and key norms, the output projection."""

    def __init__(self, config: StackConfig) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = config.heads, config.key_heads, config.head_width
        self.inner, self.kv_dim = self.heads * self.head_dim, self.kv_heads * self.head_dim
        self.scale = config.attention_scale or self.head_dim**-0.5
        self.softcap = config.attention_softcap
        self.dropout = config.dropout
        self.qk_norm = config.qk_norm
        if config.qk_norm is not None:
            wide = config.qk_norm == "full"
            self.q_norm = RMSNorm(self.inner if wide else self.head_dim, config.norm_eps)
            self.k_norm = RMSNorm(self.kv_dim if wide else self.head_dim, config.norm_eps)
        self.out = Linear(self.inner, config.dim, bias=config.out_bias)

    def _queries(self, flat: Tensor) -> Tensor:
        """Normalise ``(batch, seq, heads * head_dim)``, cut into ``(batch, seq, heads, head_dim)``."""
        if self.qk_norm == "full":
            flat = self.q_norm(flat)
        queries = flat.view(*flat.shape[:2], self.heads, self.head_dim)
        return self.q_norm(queries) if self.qk_norm == "head" else queries

    def _keys(self, flat: Tensor) -> Tensor:
        """Normalise ``(batch, seq, kv_heads * head_dim)``, cut into ``(batch, seq, kv_heads, head_dim)``."""
        if self.qk_norm == "full":
            flat = self.k_norm(flat)
        keys = flat.view(*flat.shape[:2], self.kv_heads, self.head_dim)
        return self.k_norm(keys) if self.qk_norm == "head" else keys

    def _mix(
        self, queries: Tensor, keys: Tensor, values: Tensor, view: View, seen: list[Tensor] | None
    ) -> Tensor:
        """Attend with heads ``(batch, heads, seq, head_dim)`` and project back to ``(batch, seq, dim)``."""
        dropout = self.dropout if self.training else 0.0
        if seen is None and self.softcap is None:
            mixed = attend(queries, keys, values, view, scale=self.scale, dropout=dropout)
        else:
            mixed, weights = attend_openly(
                queries, keys, values, view, scale=self.scale, softcap=self.softcap, dropout=dropout
            )
            if seen is not None:
                seen.append(weights)
        out: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return out


class SelfAttention(_Attention):
    """Attention of a sequence to itself; ``qkv`` makes queries, keys and values in one product.

    Attributes:
        learned: puts learned keys and values in the place of some (`model.soft`); None: all are made here.
    """

    def __init__(self, config: StackConfig) -> None:
        super().__init__(config)
        self.learned: nn.Module | None = None
        self.qkv = Linear(config.dim, self.inner + 2 * self.kv_dim, bias=config.qkv_bias)

    def _placed(self, both: Tensor, rotary: Tensor | None) -> Tensor:
        """Cut queries and keys ``(batch, seq, (heads + kv_heads) * head_dim)`` into heads; normalise and rotate them.

        Both take each step together: in small models the number of calls is what costs.
        """
        if self.qk_norm == "full":
            queries, keys = torch.split(both, [self.inner, self.kv_dim], dim=-1)
            both = torch.cat((self.q_norm(queries), self.k_norm(keys)), dim=-1)
        both = both.view(*both.shape[:2], self.heads + self.kv_heads, self.head_dim)
        if self.qk_norm == "head":
            parts = (self.q_norm.weight.expand(self.heads, -1), self.k_norm.weight.expand(self.kv_heads, -1))
            gains = torch.cat(parts).to(both.dtype)
            if trains_here(both):
                return turned_heads(both, gains, rotary, self.q_norm.eps)
            both = normalise(both, None, self.q_norm.eps) * gains
        return both if rotary is None else rotate(both, rotary)

    def _compiled(self, flat: Tensor, view: View) -> Tensor | None:
        """Do what lies between the two products in one call or two: in training, with the usual choices; else None."""
        has_norm = self.qk_norm == "head"
        if (
            not trains_here(flat)
            or self.softcap is not None
            or self.qk_norm == "full"
            or (has_norm and self.q_norm.weight.dtype != torch.float32)
            or not compiled.can_place(flat, self.head_dim, view.rotary)
        ):
            return None
        heads = (self.heads, self.kv_heads)
        gains = (self.q_norm.weight, self.k_norm.weight) if has_norm else None
        eps = self.q_norm.eps if has_norm else 0.0
        dropout = self.dropout if self.training else 0.0
        if not dropout and compiled.can_attend(flat, self.head_dim, view.rotary, view.mask):
            return compiled.attend(
                flat, heads, gains=gains, angles=view.rotary, mask=view.mask, causal=view.causal,
                scale=self.scale, eps=eps,
            )  # fmt: skip
        placed = compiled.place(flat, heads, gains=gains, angles=view.rotary, scale=self.scale, eps=eps)
        return attend(*placed, view, scale=1.0, dropout=dropout).transpose(1, 2).flatten(2)

    def _placed_on_gpu(self, flat: Tensor, rotary: Tensor | None) -> tuple[Tensor, Tensor, Tensor] | None:
        """Make queries, keys and values ``(batch, heads, seq, head_dim)`` in one kernel: in training, if it knows them."""
        if self.qk_norm == "full" or not trains_on_gpu(flat):
            return None
        from stockpot.native.triton_heads import can_place, placed

        has_norm = self.qk_norm == "head"
        gains = (self.q_norm.weight, self.k_norm.weight) if has_norm else None
        if not can_place(flat, self.head_dim, gains, rotary):
            return None
        eps = self.q_norm.eps if has_norm else 0.0
        return placed(flat, gains, rotary, (self.heads, self.kv_heads), eps)

    def forward(
        self,
        x: States,
        view: View,
        *,
        store: LayerCache | SlotCache | None = None,
        seen: list[Tensor] | None = None,
    ) -> States:
        """Return what each position gathered.

        Args:
            x: hidden states.
            view: who sees whom, and the angles of positions.
            store: keeps keys and values, and gives back earlier ones.
            seen: a list that receives the attention weights.
        """
        flat = self.qkv(x)
        is_plain = store is None and seen is None and self.learned is None
        if is_plain and (mixed := self._compiled(flat, view)) is not None:
            out: Tensor = self.out(mixed)
            return out
        if is_plain and (parts := self._placed_on_gpu(flat, view.rotary)) is not None:
            return self._mix(*parts, view, seen)
        both, values = flat.split((self.inner + self.kv_dim, self.kv_dim), dim=-1)
        both = self._placed(both, view.rotary)  # (batch, seq, heads + kv_heads, head_dim)
        queries, keys = torch.split(both.transpose(1, 2), [self.heads, self.kv_heads], dim=1)
        values = values.view(*values.shape[:2], self.kv_heads, self.head_dim).transpose(1, 2)
        if self.learned is not None:
            keys, values = self.learned(keys, values)
        if store is not None:
            keys, values = store.write(keys, values)
        return self._mix(queries, keys, values, view, seen)


class CrossAttention(_Attention):
    """Attention to an encoder's memory; positions play no part."""

    def __init__(self, config: StackConfig) -> None:
        super().__init__(config)
        self.q = Linear(config.dim, self.inner, bias=config.qkv_bias)
        self.kv = Linear(config.dim, 2 * self.kv_dim, bias=config.qkv_bias)

    def memory_heads(self, memory: Float[Tensor, "batch src dim"]) -> tuple[KeyHeads, KeyHeads]:
        """Turn the encoder's memory into keys and values, once per memory."""
        keys, values = self.kv(memory).split((self.kv_dim, self.kv_dim), dim=-1)
        keys, values = self._keys(keys), values.view(*values.shape[:2], self.kv_heads, self.head_dim)
        return keys.transpose(1, 2), values.transpose(1, 2)

    def forward(
        self, x: States, memory: tuple[KeyHeads, KeyHeads], view: View, *, seen: list[Tensor] | None = None
    ) -> States:
        """Return what each position gathered from the memory's keys and values."""
        queries = self._queries(self.q(x)).transpose(1, 2)
        return self._mix(queries, memory[0].to(queries.dtype), memory[1].to(queries.dtype), view, seen)
