"""A stack of equal layers, and everything its layers share.

Decides what the layers see (masks, biases, angles: computed once a call, not once a layer) and hands out the
cache's slots. It knows no vocabulary and no loss.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from stockpot.model import native_stack
from stockpot.model.attention import Trace, View
from stockpot.model.cache import CacheStep, KVCache, LayerCache, SlotCache
from stockpot.model.compiled import product_dtype
from stockpot.model.config import ABSOLUTE, StackConfig
from stockpot.model.flex import document_blocks
from stockpot.model.halves import again
from stockpot.model.layers import Block
from stockpot.model.masks import branch_positions, document_positions, real_positions, visible
from stockpot.model.norms import make_norm
from stockpot.model.positions import (
    PositionTable,
    RelativeBias,
    alibi_slopes,
    rotary_table,
    sinusoidal_table,
)
from stockpot.model.token_layers import token_layers

__all__ = ["Stack", "run_layer"]

States = Float[Tensor, "batch seq dim"]
Places = tuple[int, int] | Tensor


class _Call(NamedTuple):
    """What one call of a stack knows about its tokens.

    Attributes:
        seq: number of new tokens a row.
        places: where they stand, as a range common to all rows or ``(batch, seq)``.
        keys: number of positions to look at, old and new.
        documents: their document numbers ``(batch, seq)``, without a cache.
        branches: the branch of its document each stands in ``(batch, seq)``, 0 = trunk.
        open_: which of them are seen in both directions ``(batch, seq)``.
        step: their slots in the cache.
    """

    seq: int
    places: Places
    keys: int
    documents: Tensor | None
    open_: Tensor | None
    step: CacheStep | None
    has_gaps: bool
    branches: Tensor | None = None


class Stack(nn.Module):
    """Layers, with position embeddings in front and a norm behind where the settings ask for them."""

    def __init__(self, config: StackConfig) -> None:
        super().__init__()
        self.config = config
        self.recompute = (
            False  # in training: keep only what enters a layer, and compute the layer again on the way back
        )
        self.flex = False  # in training on a GPU: documents by FlexAttention instead of a mask
        self.narrow_states = False  # under autocast: the states between layers have the type of products
        self.positions = nn.Embedding(config.context, config.dim) if config.position == "learned" else None
        self.relative = RelativeBias(config) if config.position == "relative" else None
        self.embedding_norm = make_norm(config) if config.embedding_norm else None
        self.layers = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = make_norm(config) if config.final_norm else None
        self._waves = sinusoidal_table(config.dim) if config.position == "sinusoidal" else None
        self._angles = _angle_tables(config)
        self._slopes = PositionTable(functools.partial(_slopes, config.heads))

    def forward(  # noqa: PLR0913 - what Transformer.forward hands down
        self,
        x: States,
        *,
        documents: Int[Tensor, "batch seq"] | None = None,
        open_: Tensor | None = None,
        branches: Int[Tensor, "batch seq"] | None = None,
        has_gaps: bool = False,
        memory: Float[Tensor, "batch src dim"] | None = None,
        memory_mask: Tensor | None = None,
        cache: KVCache | None = None,
        trace: Trace | None = None,
    ) -> States:
        """Return the final hidden states.

        Args:
            x: embeddings of the tokens.
            documents: document numbers, 0 = padding.
            open_: bool ``(batch, seq)``: tokens of a prefix that is seen in both directions.
            branches: numbers of the branches of documents, 0 = trunk; without a cache only.
            has_gaps: padding may stand between real tokens (a prefix before left-padded ids).
            memory: the encoder's hidden states; ``None`` with a cache: those it holds already.
            memory_mask: bool ``(batch, 1, seq or 1, src)``: which of them each token sees.
            cache: keys and values of earlier calls; written in place.
            trace: receives attention weights and hidden states.
        """
        call = self._call(x.shape[1], documents, open_, has_gaps, cache)
        if branches is not None:
            call = call._replace(branches=branches, places=branch_positions(documents, branches))
        x = self._enter(x, call)
        if trace is None and open_ is None and memory is None:
            read = native_stack.read(
                self, x, documents=documents, branches=branches, has_gaps=has_gaps, cache=cache
            )
            if read is not None:
                if cache is not None and call.step is not None:
                    cache.end(call.step)
                return read if self.norm is None else self.norm(read)
        if cache is not None and cache.is_recorded and call.step is not None and call.step.slots is not None:
            written = self._written(x, call, cache, call.step)
            if written is not None:
                cache.end(call.step)
                return written if self.norm is None else self.norm(written)
        flex = self.flex and x.is_cuda and trace is None and cache is None and torch.is_grad_enabled()
        views = {
            window: self._blocks(call, window, x)
            if flex and self._suits_blocks(call)
            else self._view(call, window, x)
            for window in dict.fromkeys(self.config.windows)
        }
        memory_view = View(mask=memory_mask)
        if trace is not None:
            trace.clear()
            trace.hidden.append(x)
        for index, layer in enumerate(self.layers):
            store = None if cache is None or call.step is None else LayerCache(cache, index, call.step)
            view = views[self.config.windows[index]]
            if self.recompute and store is None and trace is None and torch.is_grad_enabled():
                how: dict[str, Any] = {"use_reentrant": False, "context_fn": again}
                x = checkpoint(layer, x, view, memory=memory, memory_view=memory_view, **how)
            else:
                x = layer(x, view, memory=memory, memory_view=memory_view, store=store, trace=trace)
            if trace is not None:
                trace.hidden.append(x)
        if cache is not None and call.step is not None:
            cache.end(call.step)
        return x if self.norm is None else self.norm(x)

    def _written(self, x: Tensor, call: _Call, cache: KVCache, step: CacheStep) -> Tensor | None:
        """Run the layers for a written token a row in our kernels, or as torch compiled them; None: neither."""
        windows = self.config.windows
        own = token_layers(self.config, self.layers, x) if cache.compiles or x.shape[0] == 1 else None
        if own is not None and step.slots is not None:
            angles = {window: self._rotary(call, window, x) for window in dict.fromkeys(windows)}
            for index, window in enumerate(windows):
                x = own.run(index, x, cache.slots(index, step), angles[window])
            return x
        if not cache.compiles:
            return None
        run = _compiled_layer(alone=x.shape[0] * x.shape[1] == 1)
        # What is hidden becomes a bias once, not in every layer.
        biased = {window: self._view(call, window, x).as_bias(x.dtype) for window in dict.fromkeys(windows)}
        for index, layer in enumerate(self.layers):
            x = run(layer, x, biased[windows[index]], cache.slots(index, step))
        return x

    def _call(
        self, seq: int, documents: Tensor | None, open_: Tensor | None, has_gaps: bool, cache: KVCache | None
    ) -> _Call:
        """Find out where the new tokens stand."""
        if cache is None:
            places: Places = (0, seq)
            if documents is not None and has_gaps:
                places = real_positions(documents != 0)
            return _Call(seq, places, seq, documents, open_, None, has_gaps)
        step = cache.begin(seq, None if documents is None else documents != 0)
        places = (step.start or 0, step.extent) if step.slots is None else step.slots
        return _Call(seq, places, step.extent, None, open_, step, False)

    def _enter(self, x: Tensor, call: _Call) -> Tensor:
        """Add absolute positions, which restart at each document, and normalise if asked to."""
        if self.config.position in ABSOLUTE:
            places = call.places
            if call.documents is not None and not call.has_gaps and call.branches is None:
                places = document_positions(call.documents)
            elif call.step is not None and call.step.counts is not None and isinstance(places, Tensor):
                places = places.clamp(max=max(call.keys - 1, 0))  # padding's slot has no position
            x = x + self._absolute(places, call, x)
        if self.embedding_norm is not None:
            x = self.embedding_norm(x)
        if self.narrow_states:
            x = x.to(product_dtype(x))
        return F.dropout(x, self.config.dropout, self.training) if self.config.dropout else x

    def _absolute(self, places: Places, call: _Call, x: Tensor) -> Tensor:
        """Look up position vectors ``(batch or 1, seq, dim)``."""
        length = call.keys
        if self.positions is None:
            assert self._waves is not None
            rows = self._waves.rows(places, x, length, x.dtype)
        elif length > self.config.context and call.branches is None:
            raise ValueError(f"{length} tokens, but the learned positions end at {self.config.context}")
        else:
            table = self.positions.weight
            rows = table[places[0] : places[1]] if isinstance(places, tuple) else self.positions(places)
        return rows

    def _view(self, call: _Call, window: int | None, x: Tensor) -> View:
        """Work out what the layers with this window see."""
        rotary = self._rotary(call, window, x)
        whole = window is None or window >= call.keys
        has_bias = self.config.position in ("alibi", "relative")
        is_plain = call.documents is None and call.open_ is None and call.branches is None
        if is_plain and whole and not has_bias:
            causal = self.config.attends != "bidirectional"
            if call.step is None or call.step.is_fresh:
                return View(causal=causal, rotary=rotary)
            if call.seq == 1 and call.step.slots is None:
                return View(rotary=rotary)
        queries = _as_rows(call.places, x.device)
        keys = queries if call.step is None else torch.arange(call.keys, device=x.device)[None]
        mask = visible(
            queries,
            keys,
            causal=self.config.attends != "bidirectional",
            window=None if whole else window,
            documents=None if call.documents is None else (call.documents, call.documents),
            both_ways=_open_keys(call),
            branches=None if call.branches is None else (call.branches, call.branches),
        )
        if has_bias:
            mask = self._bias(keys[:, None, :] - queries[:, :, None], mask, x)
        only_back = self.config.attends == "causal" and call.step is None
        return View(mask=mask, causal=only_back, rotary=rotary)

    def _suits_blocks(self, call: _Call) -> bool:
        """Tell whether what is seen follows from documents and branches alone."""
        config = self.config
        return (
            call.documents is not None
            and call.open_ is None
            and config.position not in ("alibi", "relative")
            and config.attention_softcap is None
            and not (config.dropout and self.training)
            and (call.branches is None or set(config.windows) == {None})
        )

    def _blocks(self, call: _Call, window: int | None, x: Tensor) -> View:
        """Work out what the layers with this window see, in blocks."""
        assert call.documents is not None  # ``_suits_blocks`` has looked
        causal = self.config.attends != "bidirectional"
        blocks = document_blocks(call.documents, call.branches, causal=causal, window=window)
        return View(causal=causal, rotary=self._rotary(call, window, x), blocks=blocks)

    def _bias(self, distance: Tensor, seen: Tensor | None, x: Tensor) -> Tensor:
        """Score distances ``(rows, seq, keys)`` per head, and hide what is not seen."""
        if self.relative is not None:
            bias: Tensor = self.relative(distance)
        else:
            slopes = self._slopes.upto(1, x, torch.float32)[: self.config.heads]
            bias = -slopes[:, None, None] * distance.abs()[:, None]
        bias = bias.to(product_dtype(x))
        return bias if seen is None else bias.masked_fill(~seen, torch.finfo(bias.dtype).min)

    def _rotary(self, call: _Call, window: int | None, x: Tensor) -> Tensor | None:
        """Look up the angles ``(batch or 1, seq, 1, 2 * rotary_dim)`` of the new tokens."""
        table = self._angles.get(window is not None)
        if table is None:
            return None
        places = call.places
        length = call.keys
        if call.step is not None and call.step.slots is not None:
            places = call.step.slots.clamp(max=max(call.keys - 1, 0))
        rows = table.rows(places, x, length, product_dtype(x))
        return rows[None, :, None] if rows.ndim == 2 else rows[:, :, None]


def run_layer(layer: nn.Module, x: Tensor, view: View, store: SlotCache) -> Tensor:
    """Run one layer of a written token: what torch compiles, once for all layers of a shape."""
    out: Tensor = layer.forward(x, view, store=store)  # not through hooks, which torch would guard
    return out


@functools.cache
def _compiled_layer(*, alone: bool) -> Callable[[nn.Module, Tensor, View, SlotCache], Tensor]:
    """Compile a layer; a token ``alone`` is then multiplied in kernels that torch writes and tries out itself."""
    options: dict[str, Any] | None = {"coordinate_descent_tuning": True} if alone else None
    return torch.compile(run_layer, dynamic=False, options=options)


def _slopes(heads: int, _: int) -> Tensor:
    return alibi_slopes(heads)


def _angle_tables(config: StackConfig) -> dict[bool, PositionTable]:
    """Make the rotary tables of layers without (False) and with (True) a window."""
    if config.position != "rope":
        return {}
    everywhere = rotary_table(config, config.rope_theta, config.rope_scaling)
    if config.rope_local_theta is None:
        return {False: everywhere, True: everywhere}
    return {False: everywhere, True: rotary_table(config, config.rope_local_theta, None)}


def _as_rows(places: Places, device: torch.device) -> Tensor:
    """Return positions as ``(batch or 1, seq)``."""
    return torch.arange(*places, device=device)[None] if isinstance(places, tuple) else places


def _open_keys(call: _Call) -> tuple[Tensor, Tensor] | None:
    """Return which queries and which keys belong to a prefix seen in both directions."""
    if call.open_ is None:
        return None
    if call.step is None:
        return call.open_, call.open_
    if call.step.slots is None:
        return call.open_, F.pad(call.open_, (call.keys - call.seq, 0))
    slots = call.step.slots.clamp(max=call.keys)
    keys = torch.zeros(slots.shape[0], call.keys + 1, dtype=torch.bool, device=slots.device)
    return call.open_, keys.scatter(1, slots, call.open_)[:, : call.keys]
