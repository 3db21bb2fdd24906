"""The Transformer: ids in, logits and hidden states out, for all three kinds of model.

Decides how embeddings, stacks and heads are joined and what the one ``forward`` accepts. It never computes a
loss, samples, reads a file or knows a string.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from stockpot.model.attention import Trace
from stockpot.model.cache import KVCache
from stockpot.model.config import ModelConfig
from stockpot.model.heads import ClassificationHead, MaskedHead, ValueHead
from stockpot.model.initial import initialise
from stockpot.model.linear import Linear, multiply
from stockpot.model.lookup import Embedding
from stockpot.model.masks import documents_of
from stockpot.model.stack import Stack

__all__ = ["Output", "Seen", "Transformer"]

Ids = Int[Tensor, "batch seq"]


class Output(NamedTuple):
    """What a model returns, whatever its kind.

    Attributes:
        logits: ``(batch, last, vocab)``; ``(batch, 0, vocab)`` when none were asked for or the model has none.
        hidden: final hidden states ``(batch, seq, dim)``, without the prefix's.
        memory: the encoder's hidden states ``(batch, src, dim)``, if there is one beside the decoder.
        attention: under ``watch()``, each layer's weights ``(batch, heads, seq, keys)``.
    """

    logits: Tensor
    hidden: Tensor
    memory: Tensor | None = None
    attention: tuple[Tensor, ...] | None = None


@dataclass
class Seen:
    """What a watched model did in its latest call: the traces of its stacks.

    ``attention`` and ``hidden`` are those of the stack that makes the logits.
    """

    encoder: Trace = field(default_factory=Trace)
    decoder: Trace = field(default_factory=Trace)

    @property
    def main(self) -> Trace:
        """The trace of the stack that makes the logits."""
        return self.decoder if self.decoder.hidden else self.encoder

    @property
    def attention(self) -> list[Tensor]:
        """Weights of each layer ``(batch, heads, seq, keys)``."""
        return self.main.attention

    @property
    def hidden(self) -> list[Tensor]:
        """Embeddings, then the states after each layer ``(batch, seq, dim)``."""
        return self.main.hidden


class Transformer(nn.Module):
    """An encoder, a decoder or both over one vocabulary, as the config says."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embed: nn.Embedding = Embedding(config.vocab_size, config.dim)
        self.segments = nn.Embedding(config.segment_types, config.dim) if config.segment_types else None
        self.encoder = Stack(config.encoder) if config.encoder else None
        self.decoder = Stack(config.decoder) if config.decoder else None
        self.masked_head = MaskedHead(config.main) if config.masked_head else None
        self.head = None if config.tied else Linear(config.dim, config.vocab_size, bias=False)
        self.logit_bias = nn.Parameter(torch.zeros(config.vocab_size)) if config.logit_bias else None
        self.pair_head = ClassificationHead(config.dim, config.pair_classes) if config.pair_classes else None
        self.value_head = ValueHead(config.dim) if config.value_head else None
        self._seen: Seen | None = None
        initialise(self)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.embed.weight.device

    @property
    def output_weight(self) -> Tensor:
        """The matrix that turns hidden states into logits ``(vocab, dim)``."""
        return self.embed.weight if self.head is None else self.head.weight

    def forward(  # noqa: PLR0913 - the seam of docs/architecture.md
        self,
        ids: Ids,
        *,
        source: Int[Tensor, "batch src"] | None = None,
        source_mask: Tensor | None = None,
        memory: Float[Tensor, "batch src dim"] | None = None,
        prefix: Float[Tensor, "batch prefix dim"] | None = None,
        attention_mask: Tensor | None = None,
        segments: Ids | None = None,
        branches: Ids | None = None,
        cache: KVCache | None = None,
        last: int | None = None,
    ) -> Output:
        """Run the model.

        Args:
            ids: what is read (encoder) or written so far (decoder).
            source: what an encoder-decoder's encoder reads.
            source_mask: like ``attention_mask``, for ``source`` or ``memory``.
            memory: the encoder's output, when it is known already.
            prefix: embeddings placed before the ids; they get no logits.
            attention_mask: bool ``(batch, seq)``, True = real; or integers, document numbers, 0 = padding.
                Padding stands left or right of the real tokens. With a cache every non-zero number is simply
                real. Leave it out where nothing is padded: that path is the fastest.
            segments: segment of each token ``(batch, seq)``; where the stack attends ``"prefix"``, those
                of segment 0 are seen in both directions.
            branches: several continuations of one text, computed at once: 0 for the text ``(batch, seq)``, then 1, 2 …
                for what follows it. A branch sees the text and itself, and its positions go on from the text's end. In
                decoders, without a cache or a prefix.
            cache: keys and values of earlier calls; written in place.
            last: compute logits for the last ``last`` positions only; 0: for none.

        Raises:
            ValueError: if arguments do not belong together or to this kind of model.
        """
        self._check(source, memory, cache, prefix, attention_mask)
        if branches is not None and (
            cache is not None or prefix is not None or self.config.shape != "decoder"
        ):
            raise ValueError("branches belong to decoders, without a cache or a prefix")
        stack, trace, documents = self.decoder, None, None
        if self._seen is not None:
            trace = self._seen.decoder
        if stack is None:
            assert self.encoder is not None
            stack, trace = self.encoder, None if self._seen is None else self._seen.encoder
        elif self.encoder is not None and source is not None:
            memory = self.encode(source, source_mask)
        if cache is not None and memory is not None:
            cache.memory_mask = None if source_mask is None else source_mask != 0
        if attention_mask is not None:
            documents = documents_of(attention_mask)
        hidden = stack(
            self._embed(ids, segments, prefix),
            documents=_widen(documents, prefix, 1),
            open_=self._open(segments, prefix),
            branches=branches,
            has_gaps=prefix is not None and documents is not None,
            memory=memory,
            memory_mask=_memory_mask(attention_mask, source_mask, cache),
            cache=cache,
            trace=trace,
        )
        if prefix is not None:
            hidden = hidden[:, prefix.shape[1] :]
        attention = None if trace is None else tuple(trace.attention)
        return Output(
            self._last_logits(hidden, last), hidden, memory if self.encoder is not stack else None, attention
        )

    def encode(
        self, source: Int[Tensor, "batch src"], source_mask: Tensor | None = None
    ) -> Float[Tensor, "batch src dim"]:
        """Run the encoder alone and return its hidden states, the ``memory`` of later calls."""
        if self.encoder is None:
            raise ValueError("this model has no encoder")
        documents = None if source_mask is None else documents_of(source_mask)
        trace = None if self._seen is None else self._seen.encoder
        memory: Tensor = self.encoder(self._embed(source, None, None), documents=documents, trace=trace)
        return memory

    def logits(self, hidden: Float[Tensor, "... dim"]) -> Float[Tensor, "... vocab"]:
        """Score every vocabulary item for each hidden state.

        Raises:
            ValueError: if the model has no output matrix.
        """
        if not self.config.predicts:
            raise ValueError("this model makes no logits (predicts = False)")
        if self.masked_head is not None:
            hidden = self.masked_head(hidden)
        if self.config.logit_scale is not None:
            hidden = hidden * self.config.logit_scale
        scores = multiply(hidden, self.output_weight, self.logit_bias)
        cap = self.config.logit_softcap
        return scores if cap is None else cap * torch.tanh(scores / cap)

    def pair_logits(self, hidden: Float[Tensor, "batch seq dim"]) -> Float[Tensor, "batch classes"]:
        """Score the classes of a sentence pair from the first token's hidden state."""
        if self.pair_head is None:
            raise ValueError("this model has no pair head (pair_classes = 0)")
        scores: Tensor = self.pair_head(hidden)
        return scores

    def values(self, hidden: Float[Tensor, "batch seq dim"]) -> Float[Tensor, "batch seq"]:
        """Give each position its value."""
        if self.value_head is None:
            raise ValueError("this model has no value head")
        found: Tensor = self.value_head(hidden)
        return found

    def new_cache(self, batch: int, capacity: int, *, dtype: torch.dtype | None = None) -> KVCache:
        """Make an empty cache for ``batch`` rows of up to ``capacity`` tokens, on the model's device."""
        stack = self.config.decoder
        if stack is None:
            raise ValueError("an encoder has no use for a cache: every token sees every other")
        dtype = dtype or self.embed.weight.dtype
        return KVCache(
            stack.layers, batch, stack.key_heads, capacity, stack.head_width, device=self.device, dtype=dtype
        )

    @contextmanager
    def watch(self) -> Iterator[Seen]:
        """Record attention weights and hidden states of the latest call inside the block."""
        before, self._seen = self._seen, Seen()
        try:
            yield self._seen
        finally:
            self._seen = before

    def _embed(self, ids: Tensor, segments: Tensor | None, prefix: Tensor | None) -> Tensor:
        """Look up token vectors ``(batch, prefix + seq, dim)``."""
        x: Tensor = self.embed(ids)
        if self.config.embedding_scale is not None:
            x = x * self.config.embedding_scale
        if self.segments is not None:
            x = x + (self.segments.weight[0] if segments is None else self.segments(segments))
        return x if prefix is None else torch.cat((prefix.to(x.dtype), x), dim=1)

    def _open(self, segments: Tensor | None, prefix: Tensor | None) -> Tensor | None:
        """Return which tokens are seen in both directions, where the stack attends so."""
        if self.config.main.attends != "prefix" or segments is None:
            return None
        return _widen(segments == 0, prefix, 1)

    def _last_logits(self, hidden: Tensor, last: int | None) -> Tensor:
        if last == 0 or not self.config.predicts:
            return hidden.new_empty((hidden.shape[0], 0, self.config.vocab_size))
        return self.logits(hidden if last is None else hidden[:, -last:])

    def _check(
        self,
        source: Tensor | None,
        memory: Tensor | None,
        cache: KVCache | None,
        prefix: Tensor | None,
        attention_mask: Tensor | None,
    ) -> None:
        """Refuse arguments that do not belong together."""
        both = self.encoder is not None and self.decoder is not None
        if not both and (source is not None or memory is not None):
            raise ValueError(
                f"source and memory belong to an encoder-decoder; this is an {self.config.shape}"
            )
        if both and source is None and memory is None and (cache is None or not cache.cross):
            raise ValueError("an encoder-decoder needs source, memory, or a cache that has seen one")
        if self.decoder is None and cache is not None:
            raise ValueError("an encoder has no use for a cache: every token sees every other")
        if prefix is not None and attention_mask is not None and attention_mask.dtype != torch.bool:
            raise ValueError("with a prefix, attention_mask is boolean: a prefix has no document number")


def _widen(values: Tensor | None, prefix: Tensor | None, fill: int) -> Tensor | None:
    """Put ``fill`` in front of ``(batch, seq)`` for the positions of a prefix."""
    if values is None or prefix is None:
        return values
    return F.pad(values, (prefix.shape[1], 0), value=fill)


def _memory_mask(
    attention_mask: Tensor | None, source_mask: Tensor | None, cache: KVCache | None
) -> Tensor | None:
    """Return the memory a token sees ``(batch, 1, seq or 1, src)``: its document's, or all that is real."""
    if cache is not None:
        return None if cache.memory_mask is None else cache.memory_mask[:, None, None]
    if source_mask is None:
        return None
    if attention_mask is not None and torch.bool not in (attention_mask.dtype, source_mask.dtype):
        return (attention_mask[:, :, None] == source_mask[:, None, :])[:, None]
    return (source_mask != 0)[:, None, None]
