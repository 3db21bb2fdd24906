"""A decoder's forward pass as one call of our kernels.

Decides which shapes of model go that way, lays out what the kernels read, and turns a padded batch into their
list of tokens and back. Padding is never computed.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from stockpot.model.cache import CacheStep, KVCache
from stockpot.model.config import ModelConfig, StackConfig
from stockpot.model.norms import LayerNorm, RMSNorm
from stockpot.native.calls import (
    ACTIVATIONS,
    CallFacts,
    Kernels,
    LayerFacts,
    ModelFacts,
    NormFacts,
    WritingFacts,
)

if TYPE_CHECKING:
    from stockpot.model.quantized import QuantizedTransformer

__all__ = ["NO_NUMBER", "GoingOn", "NativeDecoder"]

NO_NUMBER = -1  # in the place of ids, where what was computed are no numbers
Pointers = ctypes.Array[ctypes.c_void_p]
MOST_SHARING = 64  # query heads that may share a key head


@dataclass(frozen=True)
class GoingOn:
    """How rows are to go on by themselves, each with its likeliest id.

    Attributes:
        steps: most ids a row.
        seconds: no further step begins after so long; the first always does.
        enders: ids that end a text; the step that writes one is the last.
        least: for each row, the steps at the beginning in which it must not end.
    """

    steps: int
    seconds: float
    enders: Sequence[int]
    least: Sequence[int]


class NativeDecoder:
    """Runs a quantised decoder's whole forward pass in one call."""

    def __init__(self, model: QuantizedTransformer, kernels: Kernels) -> None:
        self._model, self._kernels = model, kernels
        self._kept: list[Any] = []  # memory that the kernels point into
        self._reached = 0
        stack = model.config.main
        self._layers = (LayerFacts * stack.layers)(*(self._layer(index) for index in range(stack.layers)))
        self._facts = self._model_facts(model)
        self._numbers = torch.arange(16)
        self._pointed: tuple[weakref.ref[KVCache], Pointers, Pointers] | None = None  # the last cache

    @staticmethod
    def fits(config: ModelConfig) -> bool:
        """Tell whether the kernels know this shape of model."""
        stack = config.decoder
        if stack is None or config.encoder is not None or config.masked_head or config.segment_types:
            return False
        widths = (stack.dim, stack.head_width, stack.ffn_width)
        return (
            stack.attends == "causal"
            and stack.position in ("rope", "learned", "none")
            and stack.norm_place == "pre"
            and not (stack.parallel or stack.embedding_norm)
            and stack.attention_softcap is None
            and stack.qk_norm != "full"
            and stack.ffn in ACTIVATIONS
            and all(width % 16 == 0 for width in widths)
            and stack.heads // stack.key_heads <= MOST_SHARING
        )

    def takes(self, cache: KVCache | None) -> bool:
        """Tell whether this cache is laid out as the kernels expect."""
        return cache is None or (
            cache.keys[0].dtype == torch.float16 and cache.keys[0].is_contiguous() and not cache.cross
        )

    def run(
        self,
        ids: Int[Tensor, "batch seq"],
        real: Bool[Tensor, "batch seq"] | None,
        cache: KVCache,
        last: int | None,
    ) -> tuple[Tensor, Tensor]:
        """Run tokens; return hidden states ``(batch, seq, dim)`` and logits ``(batch, last, vocab)``."""
        batch, seq = ids.shape
        step = cache.begin(seq, real)
        self._reach(step.extent)
        if seq == 1 and real is None:  # the path of every written token: nothing to lay out
            rows, picked = self._count(batch), self._count(0 if last == 0 else batch)
            hidden, logits = self._call(ids, rows, cache.lengths, picked, cache)
        else:
            places = _places(step, batch)
            rows = torch.arange(batch).unsqueeze(1).expand(batch, seq)
            wanted = torch.zeros(batch, seq, dtype=torch.bool)
            wanted[:, seq - _count(last, seq) :] = True
            chosen = torch.ones_like(wanted) if real is None else real
            picked = wanted[chosen].nonzero().squeeze(1)
            hidden, logits = self._call(ids[chosen], rows[chosen], places[chosen], picked, cache)
        cache.end(step)
        if real is None:
            return hidden.view(batch, seq, -1), logits.view(batch, -1, logits.shape[-1])
        return _spread(hidden, real), _spread(logits, (wanted & real)[:, seq - _count(last, seq) :])

    def write(
        self, ids: Int[Tensor, "batch 1"], cache: KVCache, going: GoingOn
    ) -> Int[Tensor, "steps batch"]:
        """Run a token of each row and those the rows go on with; return the ids, as many as single calls would give.

        A row of which nothing is a number at the end has ``NO_NUMBER`` in the place of its ids.
        """
        batch = ids.shape[0]
        step = cache.begin(going.steps)
        self._reach(step.extent)
        written = torch.empty(going.steps, batch, dtype=torch.int64)
        enders, least = torch.tensor(going.enders, dtype=torch.int64), torch.tensor(going.least)
        writing = WritingFacts(
            going.steps,
            going.seconds,
            len(going.enders),
            enders.data_ptr(),
            least.data_ptr(),
            written.data_ptr(),
            0,
        )
        rows = self._count(batch)
        logits = torch.empty(batch, self._facts.head.outputs)
        ids = ids.contiguous()
        call = self._call_facts(ids, rows, cache.lengths, rows, cache, logits, None)
        self._kernels.write(self._facts, call, writing)
        taken = int(writing.taken)
        cache.end(step._replace(seq=taken, extent=step.extent - going.steps + taken))
        # of logits that are no numbers, greedy choice takes the first
        chosen = logits.gather(1, written[taken - 1].unsqueeze(1)).squeeze(1)
        return written[:taken].masked_fill_(chosen.isnan(), NO_NUMBER)

    def _call(
        self, ids: Tensor, rows: Tensor, places: Tensor, picked: Tensor, cache: KVCache
    ) -> tuple[Tensor, Tensor]:
        """Run a list of tokens, each with its row and its place."""
        ids = ids.contiguous()
        hidden = torch.empty(ids.numel(), self._model.config.dim)
        logits = torch.empty(picked.shape[0], self._facts.head.outputs)
        call = self._call_facts(ids, rows, places, picked, cache, logits, hidden)
        self._kernels.forward(self._facts, call)
        return hidden, logits[:, : self._model.config.vocab_size]

    def _call_facts(
        self,
        ids: Tensor,
        rows: Tensor,
        places: Tensor,
        picked: Tensor,
        cache: KVCache,
        logits: Tensor,
        hidden: Tensor | None,
    ) -> CallFacts:
        """Say where everything lies; the caller keeps it alive."""
        (keys, values), first = self._pointers(cache), cache.keys[0]
        return CallFacts(
            ids.numel(),
            picked.shape[0],
            torch.get_num_threads(),
            ids.data_ptr(),
            rows.data_ptr(),
            places.data_ptr(),
            ctypes.addressof(keys),
            ctypes.addressof(values),
            first.stride(0),
            first.stride(1),
            picked.data_ptr(),
            logits.data_ptr(),
            None if hidden is None else hidden.data_ptr(),
        )

    def _pointers(self, cache: KVCache) -> tuple[Pointers, Pointers]:
        """Return where each layer's keys and values lie; a cache never changes its tensors for others."""
        if self._pointed is None or self._pointed[0]() is not cache:
            self._pointed = (weakref.ref(cache), _addresses(cache.keys), _addresses(cache.values))
        return self._pointed[1:]

    def _count(self, count: int) -> Tensor:
        """Return the numbers from 0 to ``count - 1``."""
        if count > self._numbers.shape[0]:
            self._numbers = torch.arange(2 * count)
        return self._numbers[:count]

    # --- what the kernels read ---

    def _reach(self, extent: int) -> None:
        """Make sure that there are angles or vectors for so many positions."""
        if extent <= self._reached:
            return
        stack: Any = self._model.decoder
        if stack.positions is not None and extent > stack.config.context:
            raise ValueError(f"{extent} tokens, but the learned positions end at {stack.config.context}")
        for has_window, table in stack._angles.items():
            rows = table.upto(extent, torch.empty(0), torch.float32)
            self._kept.append(rows)
            for layer, window in zip(self._layers, stack.config.windows, strict=True):
                if (window is not None) == has_window:
                    layer.rotary = rows.data_ptr()
        self._reached = extent

    def _layer(self, index: int) -> LayerFacts:
        stack: Any = self._model.decoder
        block, config = stack.layers[index], stack.config
        attention, ffn = block.attention, block.ffn
        return LayerFacts(
            attention.qkv.matrix.facts,
            attention.out.matrix.facts,
            ffn.up.matrix.facts,
            ffn.down.matrix.facts,
            self._pointer(attention.qkv.bias),
            self._pointer(attention.out.bias),
            self._pointer(_in_turns(ffn.up.bias) if ffn.is_gated else ffn.up.bias),
            self._pointer(ffn.down.bias),
            self._norm(block.attention_norm),
            self._norm(block.ffn_norm),
            self._pointer(attention.q_norm.weight if config.qk_norm else None),
            self._pointer(attention.k_norm.weight if config.qk_norm else None),
            None,
            config.windows[index] or 0,
        )

    def _model_facts(self, model: QuantizedTransformer) -> ModelFacts:
        stack: Any = model.decoder
        config: StackConfig = stack.config
        embed: Any = model.embed
        output: Any = model._output
        return ModelFacts(
            config.layers,
            config.dim,
            config.heads,
            config.key_heads,
            config.head_width,
            config.rotary_dim,
            config.ffn_width,
            config.is_gated,
            ACTIVATIONS[config.ffn],
            model.config.vocab_size,
            config.norm_eps,
            config.attention_scale or config.head_width**-0.5,
            model.config.embedding_scale or 1.0,
            self._layers,
            embed.matrix.facts,
            output.facts,
            self._pointer(None if stack.positions is None else stack.positions.weight),
            self._norm(stack.norm),
        )

    def _norm(self, norm: RMSNorm | LayerNorm | None) -> NormFacts:
        if norm is None:
            return NormFacts()
        bias = norm.bias if isinstance(norm, LayerNorm) else None
        return NormFacts(self._pointer(norm.weight), self._pointer(bias), isinstance(norm, LayerNorm))

    def _pointer(self, tensor: Tensor | None) -> int | None:
        """Keep a tensor as float32 for as long as the kernels may read it, and point to it."""
        if tensor is None:
            return None
        self._kept.append(tensor.detach().float().contiguous())
        return int(self._kept[-1].data_ptr())


def _in_turns(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else torch.unflatten(bias, 0, (2, -1, 16)).transpose(0, 1).flatten()


def _addresses(tensors: list[Tensor]) -> Pointers:
    return (ctypes.c_void_p * len(tensors))(*(tensor.data_ptr() for tensor in tensors))


def _places(step: CacheStep, batch: int) -> Tensor:
    """Return where the tokens of a call stand ``(batch, seq)``."""
    if step.slots is not None:
        return step.slots
    return torch.arange(step.start or 0, step.extent).expand(batch, step.seq)


def _count(last: int | None, seq: int) -> int:
    return seq if last is None else min(last, seq)


def _spread(values: Tensor, places: Bool[Tensor, "batch seq"]) -> Tensor:
    """Put rows where they are wanted and zeros elsewhere."""
    out = values.new_zeros(*places.shape, values.shape[-1])
    out[places] = values
    return out
