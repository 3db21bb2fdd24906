"""Keys and values of earlier positions, so that a token is computed once.

The caller makes a cache, hands it to every call and owns it; the model only writes into it, in place. Each
row has its own length, and real tokens are stored without gaps: padding in a batch, left or right, takes no
place. What a position means (angles, windows, biases) is not decided here.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

__all__ = ["CacheStep", "KVCache", "LayerCache", "SlotCache"]

KeyHeads = Float[Tensor, "batch kv_heads keys head_dim"]


class CacheStep(NamedTuple):
    """Where the tokens of one call go; made by :meth:`KVCache.begin`.

    Attributes:
        seq: tokens per row in this call, padding included.
        extent: number of slots that may hold something after this call.
        start: first slot, when all rows write to the same slots; otherwise ``None``.
        slots: slot of each token ``(batch, seq)``, when rows differ; padding goes to the spare last slot.
        counts: how many tokens each row gains ``(batch,)``; ``None``: all of them.
    """

    seq: int
    extent: int
    start: int | None = None
    slots: Int[Tensor, "batch seq"] | None = None
    counts: Int[Tensor, " batch"] | None = None

    @property
    def is_fresh(self) -> bool:
        """Whether the cache held nothing before and every row gets the same number of tokens."""
        return self.start == 0


class KVCache:
    """Preallocated keys and values of every layer, and those of an encoder's memory.

    Attributes:
        keys, values: per layer ``(batch, kv_heads, capacity + 1, head_dim)``; the last slot is spare.
        lengths: tokens stored in each row ``(batch,)``, int64.
        extent: an upper bound of ``lengths``, known without asking the device.
        capacity: tokens a row can hold.
        is_even: whether all rows are known to have the same length, ``extent``.
        cross: per layer the memory's keys and values, written by the calls that bring a memory.
        memory_mask: which positions of the memory are real ``(batch, src)``; ``None``: all.
        is_recorded: calls of one token a row may be recorded, and go through our kernels for them where these know the model
            (a decoder, on a GPU).
        compiles: they may also go through layers that torch compiled.
    """

    is_recorded = False
    compiles = False
    _numbers: Tensor | None = None

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
        self._whole: tuple[KVCache, slice] | None = None

    @property
    def batch(self) -> int:
        """Number of rows."""
        return self.lengths.shape[0]

    def rows(self, start: int, stop: int) -> KVCache:
        """Return a cache of some rows that shares this one's storage.

        So a request can be read into its row while the others wait. Use the part, then the whole: writing to
        the whole makes earlier parts stale.
        """
        if not 0 <= start < stop <= self.batch:
            raise ValueError(f"rows {start} to {stop} do not exist in a cache of {self.batch}")
        part = object.__new__(KVCache)
        part.keys = [keys[start:stop] for keys in self.keys]
        part.values = [values[start:stop] for values in self.values]
        part.lengths = self.lengths[start:stop]
        part.capacity, part.extent, part.is_even = self.capacity, self.extent, self.is_even
        part.cross = [(keys[start:stop], values[start:stop]) for keys, values in self.cross]
        part.memory_mask = None if self.memory_mask is None else self.memory_mask[start:stop]
        part._whole = (self, slice(start, stop))
        if not self.is_even:
            part.tighten()
            part.is_even = part.batch == 1
        return part

    def part(self, start: int, stop: int) -> KVCache:
        """Return rows that share this cache's storage, and know nothing of it otherwise: no memory, no common lengths."""
        part = copy.copy(self)
        part.keys = [keys[start:stop] for keys in self.keys]
        part.values = [values[start:stop] for values in self.values]
        part.lengths = self.lengths[start:stop]
        part.cross, part.memory_mask, part._whole = [], None, None
        return part

    def slots(self, layer: int, step: CacheStep) -> SlotCache:
        """Return one layer's part of a call whose tokens go to slots of their own."""
        assert step.slots is not None
        if (
            self._numbers is None or self._numbers.shape[0] != self.batch
        ):  # once, not a kernel for every layer
            self._numbers = torch.arange(self.batch, device=step.slots.device)[:, None]
        return SlotCache(self.keys[layer], self.values[layer], self._numbers, step.slots, step.extent)

    def begin(self, seq: int, real: Bool[Tensor, "batch seq"] | None = None) -> CacheStep:
        """Plan where ``seq`` more tokens a row go; ``real`` marks those that are not padding.

        Raises:
            ValueError: if they do not fit.
        """
        if real is not None:
            return self._begin_ragged(seq, real)
        if self.extent + seq > self.capacity and not self.is_even:
            self.tighten()
        self._check(self.extent + seq)
        if self.is_even:
            return CacheStep(seq, self.extent + seq, start=self.extent)
        slots = self.lengths[:, None] + torch.arange(seq, device=self.lengths.device)
        return CacheStep(seq, self.extent + seq, slots=slots)

    def _begin_ragged(self, seq: int, real: Tensor) -> CacheStep:
        """Plan for rows that gain different numbers of tokens; asks the device unless ``seq`` is 1."""
        extent = self.extent + 1
        if seq == 1 and extent <= self.capacity:  # a step of writing, where each kernel counts
            slots = torch.where(real, self.lengths[:, None], self.capacity)
            return CacheStep(seq, extent, slots=slots, counts=real[:, 0].to(self.lengths.dtype))
        counts = real.sum(1)
        if seq > 1 or extent > self.capacity:
            extent = max(int((self.lengths + counts).max()), 1)
        self._check(extent)
        slots = torch.where(real, self.lengths[:, None] + real.cumsum(1) - 1, self.capacity)
        return CacheStep(seq, extent, slots=slots, counts=counts)

    def write(self, layer: int, keys: KeyHeads, values: KeyHeads, step: CacheStep) -> tuple[Tensor, Tensor]:
        """Store one layer's new keys and values; return all of that layer's, up to ``step.extent``.

        Shapes: in ``(batch, kv_heads, seq, head_dim)``, out ``(batch, kv_heads, extent, head_dim)``.
        """
        for store, new in ((self.keys[layer], keys), (self.values[layer], values)):
            if step.slots is None:
                store[:, :, step.start : step.extent] = new
            else:
                rows = torch.arange(self.batch, device=store.device)[:, None]
                store[rows, :, step.slots] = new.transpose(1, 2).to(store.dtype)
        return self.keys[layer][:, :, : step.extent], self.values[layer][:, :, : step.extent]

    def end(self, step: CacheStep) -> None:
        """Count the tokens of ``step`` as stored."""
        self.lengths += step.seq if step.counts is None else step.counts
        self.extent = step.extent
        if step.counts is not None:
            self.is_even = self.batch == 1 and step.seq > 1  # then the extent was asked for, and is exact
        if self._whole is not None:
            whole = self._whole[0]
            whole.extent, whole.is_even = max(whole.extent, self.extent), False

    def remember(self, layer: int, keys: KeyHeads, values: KeyHeads) -> None:
        """Keep one layer's keys and values of an encoder's memory, in the order of layers."""
        if layer == 0:
            self.cross = []
        self.cross.append((keys, values))
        if self._whole is not None:
            whole, rows = self._whole
            whole._place_memory(layer, rows, keys, values, self.memory_mask)

    def _place_memory(
        self, layer: int, rows: slice, keys: Tensor, values: Tensor, mask: Tensor | None
    ) -> None:
        """Put a part's memory into its rows, making room where its source is the longest so far."""
        src = keys.shape[2]
        if len(self.cross) <= layer:
            room = (self.batch, keys.shape[1], src, keys.shape[3])
            self.cross.append((keys.new_zeros(room), values.new_zeros(room)))
        grow = max(src - self.cross[layer][0].shape[2], 0)
        mine = tuple(torch.nn.functional.pad(held, (0, 0, 0, grow)) for held in self.cross[layer])
        mine[0][rows, :, :src], mine[1][rows, :, :src] = keys, values
        self.cross[layer] = (mine[0], mine[1])
        if layer == 0:
            width = mine[0].shape[2]
            held = self.memory_mask
            fresh = torch.zeros(self.batch, width, dtype=torch.bool, device=keys.device)
            fresh[:, 0] = True  # a row without memory still averages something
            if held is not None:
                fresh[:, : held.shape[1]] = held
            fresh[rows] = False
            fresh[rows, :src] = True if mask is None else mask
            self.memory_mask = fresh

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
        self.lengths.copy_(torch.minimum(self.lengths, lengths))
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

    def _check(self, needed: int) -> None:
        if needed > self.capacity:
            raise ValueError(
                f"the cache holds {self.capacity} tokens a row; this call would make it {needed}"
            )


class SlotCache(NamedTuple):
    """One layer's part of a cache as plain tensors: what torch can compile once for all layers.

    Attributes:
        keys, values: the layer's ``(batch, kv_heads, capacity + 1, head_dim)``.
        rows, slots: where new tokens go ``(batch, 1)`` and ``(batch, seq)``.
        extent: slots that are looked at.
    """

    keys: Tensor
    values: Tensor
    rows: Tensor
    slots: Tensor
    extent: int

    def write(self, keys: KeyHeads, values: KeyHeads) -> tuple[Tensor, Tensor]:
        """Store new keys and values and return all that are looked at."""
        self.keys[self.rows, :, self.slots] = keys.transpose(1, 2).to(self.keys.dtype)
        self.values[self.rows, :, self.slots] = values.transpose(1, 2).to(self.values.dtype)
        return self.keys[:, :, : self.extent], self.values[:, :, : self.extent]


class LayerCache(NamedTuple):
    """One layer's part of a cache during one call."""

    cache: KVCache
    layer: int
    step: CacheStep

    def write(self, keys: KeyHeads, values: KeyHeads) -> tuple[Tensor, Tensor]:
        """Store new keys and values and return those to attend to, in the type of the new ones."""
        held = self.cache.write(self.layer, keys, values, self.step)
        if self.step.is_fresh:
            return keys, values
        return held[0].to(keys.dtype), held[1].to(values.dtype)

    def remember(self, keys: KeyHeads, values: KeyHeads) -> None:
        """Keep the memory's keys and values."""
        self.cache.remember(self.layer, keys, values)

    @property
    def memory(self) -> tuple[Tensor, Tensor]:
        """The memory's keys and values."""
        return self.cache.cross[self.layer]
