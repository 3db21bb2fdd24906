"""One layer of a Transformer: attention, then a feed-forward, each added to what came in.

Decides the feed-forward variants and where the norms stand. It does not know how many layers there are or
what comes before and after them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from stockpot.model import compiled
from stockpot.model.attention import CrossAttention, SelfAttention, Trace, View
from stockpot.model.cache import LayerCache, SlotCache
from stockpot.model.config import StackConfig
from stockpot.model.elementwise import swiglu
from stockpot.model.kernels import trains_here, trains_on_gpu
from stockpot.model.linear import Linear
from stockpot.model.norms import LayerNorm, RMSNorm, joined, make_norm

__all__ = ["ACTIVATIONS", "Block", "FeedForward"]

States = Float[Tensor, "batch seq dim"]
ALL = View()


def relu2(x: Tensor) -> Tensor:
    """Return the square of the positive part. Source: So et al. 2021, arXiv:2109.08668, §3."""
    return F.relu(x).square()


def quick_gelu(x: Tensor) -> Tensor:
    """Return x · σ(1.702 x), near GELU. Source: Hendrycks & Gimpel 2016, arXiv:1606.08415, §2."""
    return x * (1.702 * x).sigmoid()


_gelu_tanh = partial(F.gelu, approximate="tanh")

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "swiglu": F.silu,
    "geglu": F.gelu,
    "geglu_tanh": _gelu_tanh,
    "gelu": F.gelu,
    "gelu_tanh": _gelu_tanh,
    "relu": F.relu,
    "relu2": relu2,
    "silu": F.silu,
    "quick_gelu": quick_gelu,
}


class FeedForward(nn.Module):
    """Widen, bend, narrow; gated kinds make gate and value in one product, gate first.

    Source: Shazeer 2020, arXiv:2002.05202, eq. 5–6 (gated kinds).
    """

    def __init__(self, config: StackConfig) -> None:
        super().__init__()
        self.is_gated, self.activation = config.is_gated, ACTIVATIONS[config.ffn]
        wide = config.ffn_width * (2 if self.is_gated else 1)
        self.up = Linear(config.dim, wide, bias=config.ffn_bias)
        self.down = Linear(config.ffn_width, config.dim, bias=config.ffn_bias)

    def forward(self, x: States) -> States:
        """Transform every position on its own."""
        wide = self.up(x)
        trains = trains_here(wide)
        if trains and self.activation is F.silu and self.is_gated:
            wide = compiled.swiglu(wide) if compiled.suits(wide) else swiglu(wide)
        elif trains and self.activation is F.gelu and not self.is_gated and compiled.suits(wide):
            wide = compiled.gelu(wide)
        elif self.is_gated and self.activation is F.silu and trains_on_gpu(wide):
            from stockpot.native.triton_swiglu import swiglu as swiglu_on_gpu

            wide = swiglu_on_gpu(wide)
        elif self.is_gated:
            gate, value = wide.chunk(2, dim=-1)
            wide = self.activation(gate) * value
        else:
            wide = self.activation(wide)
        out: Tensor = self.down(wide)
        return out


class Block(nn.Module):
    """One layer. A norm is before its sublayer (``*_norm``), after it (``*_post_norm``), or both."""

    def __init__(self, config: StackConfig) -> None:
        super().__init__()
        self.attention = SelfAttention(config)
        self.cross = CrossAttention(config) if config.cross else None
        self.ffn = FeedForward(config)
        self.dropout = config.dropout
        self.parallel, self.norms_sum = config.parallel, config.norm_place == "post"
        before = config.norm_place in ("pre", "sandwich")
        after = config.norm_place != "pre"
        self.attention_norm, self.attention_post_norm = _norms(config, before, after)
        self.cross_norm, self.cross_post_norm = _norms(
            config, before and config.cross, after and config.cross
        )
        self.ffn_norm, self.ffn_post_norm = _norms(config, before and not config.shared_norm, after)

    def forward(
        self,
        x: States,
        view: View,
        *,
        memory: Float[Tensor, "batch src dim"] | None = None,
        memory_view: View = ALL,
        store: LayerCache | SlotCache | None = None,
        trace: Trace | None = None,
    ) -> States:
        """Return the hidden states after this layer.

        Args:
            x: the hidden states before it.
            view: who sees whom within the sequence.
            memory: an encoder's hidden states; ``None``: those whose keys and values ``store`` holds.
            memory_view: who sees what of the memory.
            store: this layer's part of a cache.
            trace: receives the attention weights.
        """
        x, entered = joined(x, None, self.attention_norm)
        gathered = self.attention(entered, view, store=store, seen=None if trace is None else trace.attention)
        if self.parallel:
            apart = entered if self.ffn_norm is None else self.ffn_norm(x)
            return x + self._drop(gathered + self.ffn(apart))
        following = self.ffn_norm if self.cross is None else self.cross_norm
        x, entered = self._join(x, gathered, self.attention_post_norm, following)
        if self.cross is not None:
            heads = self._memory_heads(self.cross, memory, store)
            seen = None if trace is None else trace.cross
            gathered = self.cross(entered, heads, memory_view, seen=seen)
            x, entered = self._join(x, gathered, self.cross_post_norm, self.ffn_norm)
        return self._join(x, self.ffn(entered), self.ffn_post_norm, None)[0]

    def _memory_heads(
        self, cross: CrossAttention, memory: Tensor | None, store: LayerCache | SlotCache | None
    ) -> tuple[Tensor, Tensor]:
        """Return the memory's keys and values: fresh ones, which the cache then keeps, or those it holds."""
        if memory is None:
            assert isinstance(store, LayerCache)  # the Transformer checks
            return store.memory
        heads: tuple[Tensor, Tensor] = cross.memory_heads(memory)
        if isinstance(store, LayerCache):
            store.remember(*heads)
        return heads

    def _join(
        self, x: Tensor, change: Tensor, own: nn.Module | None, following: nn.Module | None
    ) -> tuple[Tensor, Tensor]:
        """Add a sublayer's change to the stream, with its ``own`` norm where it belongs; also normalise the sum."""
        change = self._drop(change)
        if own is not None and self.norms_sum:
            return joined(own(x + change), None, following)
        return joined(x, change if own is None else own(change), following)

    def _drop(self, change: Tensor) -> Tensor:
        return F.dropout(change, self.dropout, self.training) if self.dropout else change


def _norms(
    config: StackConfig, before: bool, after: bool
) -> tuple[RMSNorm | LayerNorm | None, RMSNorm | LayerNorm | None]:
    """Make the norms of one sublayer."""
    first = make_norm(config, feeds_product=True) if before else None
    return first, make_norm(config) if after else None
