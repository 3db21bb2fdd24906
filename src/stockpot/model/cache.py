"""Keys and values of earlier positions, so that a token is computed once.

The caller makes a cache, hands it to every call and owns it; the model only writes into it, in place. Each row has its own
length, and real tokens are stored without gaps: padding in a batch, left or right, takes no place. What a position means
(angles, windows, biases) is not decided here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

__all__ = ["CacheStep", "KVCache"]


@dataclass(frozen=True)
class CacheStep:
    """Where the tokens of one call go; made by :meth:`KVCache.begin`.

    Attributes:
        extent: number of slots that may hold something after this call.
        start: first slot, when all rows write to the same slots; otherwise ``None``.
        slots: the slot of every token ``(batch, seq)``, when rows differ; padding goes to the spare last slot.
        counts: how many tokens each row gains ``(batch,)``; ``None``: all of them.
    """

    seq: int
    extent: int
    start: int | None
    slots: Int[Tensor, "batch seq"] | None
    counts: Int[Tensor, " batch"] | None

    @property
    def is_fresh(self) -> bool:
        """Whether the cache held nothing before and every row gets the same number of tokens."""
        return self.start == 0


class KVCache:
    """Preallocated keys and values of every layer, and an encoder's memory for cross-attention.

    Attributes:
        keys, values: per layer ``(batch, kv_heads, capacity + 1, head_dim)``; the last slot is spare.
        lengths: tokens stored in each row ``(batch,)``, int64.
        extent: an upper bound of ``lengths``, known without asking the device.
        cross: per layer the keys and values of the encoder's memory, written by the first call that brings one.
        memory_mask: which positions of the memory are real.
    """

    def __init__(
        self,
        layers: int,
        batch: int,
        kv_heads: int,
        capacity: int,
        head_dim: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if batch < 1 or capacity < 1:
            raise ValueError(f"a cache needs at least one row and one slot, not {batch} and {capacity}")
        shape = (batch, kv_heads, capacity + 1, head_dim)
        self.keys = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(layers)]
        self.values = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(layers)]
        self.lengths = torch.zeros(batch, dtype=torch.int64, device=device)
        self.capacity = capacity
        self.extent = 0
        self.is_even = True
        self.cross: list[tuple[Tensor, Tensor]] = []
        self.memory_mask: Tensor | None = None

    @property
    def batch(self) -> int:
        """Number of rows."""
        return self.lengths.shape[0]

    def begin(self, seq: int, real: Bool[Tensor, "batch seq"] | None = None) -> CacheStep:
        """Plan where ``seq`` more tokens a row go; ``real`` marks those that are not padding.

        Raises:
            ValueError: if they do not fit.
        """
        if real is None and self.is_even:
            self._check(self.extent + seq)
            return CacheStep(seq, self.extent + seq, self.extent, None, None)
        if real is None:
            slots = self.lengths[:, None] + torch.arange(seq, device=self.lengths.device)
            self._fit(seq)
            return CacheStep(seq, self.extent + seq, None, slots, None)
        counts = real.sum(1)
        grown = self.extent + seq if seq == 1 else int((self.lengths + counts).max())
        if grown > self.capacity:
            grown = int((self.lengths + counts).max())
        self._check(grown)
        slots = torch.where(real, self.lengths[:, None] + real.cumsum(1) - 1, self.capacity)
        return CacheStep(seq, max(grown, 1), None, slots, counts)

    def write(
        self, layer: int, keys: Float[Tensor, "batch kv_heads seq head_dim"], values: Tensor, step: CacheStep
    ) -> tuple[Float[Tensor, "batch kv_heads keys head_dim"], Float[Tensor, "batch kv_heads keys head_dim"]]:
        """Store one layer's new keys and values; return all of that layer's, old and new, up to ``step.extent``."""
        for store, new in ((self.keys[layer], keys), (self.values[layer], values)):
            if step.slots is None:
                store[:, :, step.start : step.extent] = new
            else:
                rows = torch.arange(self.batch, device=store.device)[:, None]
                store[rows, :, step.slots] = new.transpose(1, 2).to(store.dtype)
        return self.keys[layer][:, :, : step.extent], self.values[layer][:, :, : step.extent]

    def end(self, step: CacheStep) -> None:
        """Count the tokens of ``step`` as stored."""
        if step.counts is None:
            self.lengths += step.seq
        else:
            self.lengths += step.counts
            self.is_even = False
        self.extent = step.extent

    def remember(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """Keep one layer's keys and values of an encoder's memory."""
        if layer == 0:
            self.cross = []
        self.cross.append((keys, values))

    def reset(self, rows: Sequence[int] | None = None) -> None:
        """Forget what the given rows hold; ``None``: everything, the memory included."""
        if rows is None:
            self.lengths.zero_()
            self.extent, self.is_even, self.cross, self.memory_mask = 0, True, [], None
            return
        self.lengths[list(rows)] = 0
        self.is_even = False
        self.tighten()

    def truncate(self, lengths: Int[Tensor, " batch"] | int) -> None:
        """Shorten rows to at most ``lengths`` tokens."""
        if isinstance(lengths, int):
            self.lengths.clamp_(max=lengths)
            self.extent = min(self.extent, lengths)
            return
        torch.minimum(self.lengths, lengths, out=self.lengths)
        self.is_even = False
        self.tighten()

    def reorder(self, rows: Int[Tensor, " batch"]) -> None:
        """Let row i go on from what row ``rows[i]`` holds, as beam search needs."""
        for store in (*self.keys, *self.values):
            store[:, :, : self.extent] = store[:, :, : self.extent].index_select(0, rows)
        self.lengths.copy_(self.lengths.index_select(0, rows))
        self.cross = [
            (keys.index_select(0, rows), values.index_select(0, rows)) for keys, values in self.cross
        ]
        if self.memory_mask is not None:
            self.memory_mask = self.memory_mask.index_select(0, rows)

    def tighten(self) -> None:
        """Lower ``extent`` to the longest row; asks the device."""
        self.extent = int(self.lengths.max())

    def _fit(self, seq: int) -> None:
        if self.extent + seq > self.capacity:
            self.tighten()
        self._check(self.extent + seq)

    def _check(self, needed: int) -> None:
        if needed > self.capacity:
            raise ValueError(
                f"the cache holds {self.capacity} tokens a row, and this call would make it {needed}"
            )
