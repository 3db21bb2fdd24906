"""The rows of one cache, shared out among the requests that are alive.

Live rows stand without holes: first those that are decoded together, then those whose prompt is still being
read. When a row is freed another moves into its place, so that a step never computes for nobody. Which
request owns which row is the engine's business; lengths are kept here as plain numbers, so that no step asks
the device.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from stockpot.generate.prefixes import Held
from stockpot.model.cache import KVCache
from stockpot.model.transformer import Transformer

__all__ = ["Rows"]

SMALLEST = 128  # tokens a row; caches grow by doubling from here

Memory = tuple[
    list[tuple[Tensor, Tensor]], Tensor
]  # per layer keys and values of one source, and its mask (1, src)


class Rows:
    """A growing cache with live rows ``0 … count - 1``.

    Args:
        most_tokens: longest row.
        most_bytes: memory for all rows; None: as much as they take. One row may always be as long as it must.

    Attributes:
        lengths: tokens stored in each live row.
        memories: for encoder-decoders, what each live row's source became.
    """

    def __init__(self, model: Transformer, most_tokens: int, most_bytes: int | None = None) -> None:
        self._model = model
        self._most_tokens = most_tokens
        self._most_in_all = None if most_bytes is None else most_bytes // _token_bytes(model)
        self._cache: KVCache | None = None
        self._view: tuple[int, int, KVCache] | None = None
        self.lengths: list[int] = []
        self.memories: list[Memory | None] = []

    @property
    def count(self) -> int:
        """Number of live rows."""
        return len(self.lengths)

    def has_room(self, tokens: Sequence[int]) -> bool:
        """Tell whether rows of so many tokens may be alive together; one alone always may."""
        longest = min(max(tokens), self._most_tokens)
        return len(tokens) == 1 or self._most_in_all is None or len(tokens) * longest <= self._most_in_all

    def add(self, rows: int, tokens: int) -> None:
        """Bring ``rows`` empty rows to life; ``tokens``: the longest that a live row may become."""
        self._reserve(self.count + rows, min(tokens, self._most_tokens))
        assert self._cache is not None
        self._cache.lengths[self.count : self.count + rows] = 0
        self.lengths += [0] * rows
        self.memories += [None] * rows
        self._view = None

    def view(self, start: int, stop: int) -> KVCache:
        """Return live rows ``start … stop - 1`` as a cache of their own in the same storage."""
        assert self._cache is not None
        lengths = self.lengths[start:stop]
        if self._view is None or self._view[:2] != (start, stop):
            view = self._cache.part(start, stop)
            self._lend_memories(view, start, stop)
            self._view = (start, stop, view)
        view = self._view[2]
        view.extent, view.is_even = max(lengths), min(lengths) == max(lengths)
        return view

    def grew(self, start: int, gained: Sequence[int]) -> None:
        """Note that rows from ``start`` on hold that many more tokens."""
        for row, tokens in enumerate(gained, start):
            self.lengths[row] += tokens

    def set_length(self, row: int, tokens: int) -> None:
        """Let a row hold so many tokens: fewer than it did, or as many as were put there."""
        assert self._cache is not None
        self._cache.lengths[row] = tokens
        self.lengths[row] = tokens

    def fill(self, row: int, held: Held, tokens: int) -> None:
        """Begin an empty row with the first ``tokens`` tokens of what was held."""
        assert self._cache is not None
        held.put(self._cache, slice(row, row + 1), tokens)
        self.set_length(row, tokens)
        self._view = None

    @property
    def cache(self) -> KVCache:
        """The cache whose first rows the live rows are."""
        assert self._cache is not None
        return self._cache

    def copy(self, source: int, target: int, tokens: int | None = None) -> None:
        """Let row ``target`` hold what row ``source`` holds, or its first ``tokens`` tokens."""
        assert self._cache is not None
        length = self.lengths[source] if tokens is None else tokens
        for store in (*self._cache.keys, *self._cache.values):
            store[target, :, :length] = store[source, :, :length]
        self._cache.lengths[target] = length
        self.lengths[target] = length
        self.memories[target] = self.memories[source]
        self._view = None

    def drop_last(self) -> None:
        """Free the last live row."""
        self.lengths.pop()
        self.memories.pop()
        self._view = None

    def _reserve(self, rows: int, tokens: int) -> None:
        """Make room, doubling what is there, and keep what the live rows hold."""
        old = self._cache
        if old is not None and old.batch >= rows and old.capacity >= tokens:
            return
        batch, capacity = rows, max(1, min(max(tokens, SMALLEST), self._most_tokens))
        if old is not None:
            batch = old.batch if rows <= old.batch else max(rows, 2 * old.batch)
            grown = old.capacity if tokens <= old.capacity else max(tokens, 2 * old.capacity)
            capacity = max(capacity, min(grown, self._most_tokens))
            if self._most_in_all is not None and batch * capacity > self._most_in_all:
                capacity = max(1, min(tokens, self._most_tokens))
                batch = max(rows, min(2 * rows, self._most_in_all // capacity))
        self._cache = self._model.new_cache(batch, capacity)
        if old is not None and self.count:
            longest = max(self.lengths)
            new = (*self._cache.keys, *self._cache.values)
            for store, before in zip(new, (*old.keys, *old.values), strict=True):
                store[: self.count, :, :longest] = before[: self.count, :, :longest]
            self._cache.lengths[: self.count] = old.lengths[: self.count]
        self._view = None

    def _lend_memories(self, view: KVCache, start: int, stop: int) -> None:
        """Put the sources of some rows side by side, padded to the longest."""
        memories = [memory for memory in self.memories[start:stop] if memory is not None]
        view.cross, view.memory_mask = [], None
        if not memories:
            return
        longest = max(mask.shape[1] for _, mask in memories)
        view.memory_mask = torch.cat([F.pad(mask, (0, longest - mask.shape[1])) for _, mask in memories])
        for layer in range(len(memories[0][0])):
            heads = [
                [F.pad(part, (0, 0, 0, longest - part.shape[2])) for part in memory[layer]]
                for memory, _ in memories
            ]
            view.cross.append(
                (torch.cat([keys for keys, _ in heads]), torch.cat([values for _, values in heads]))
            )

    def keep_memories(self, start: int, view: KVCache, source_lengths: Sequence[int]) -> None:
        """Take over what a first call with sources left in ``view``, row by row and without padding."""
        for row, length in enumerate(source_lengths):
            layers = [
                (keys[row : row + 1, :, :length], values[row : row + 1, :, :length])
                for keys, values in view.cross
            ]
            mask = torch.ones(1, length, dtype=torch.bool, device=view.lengths.device)
            self.memories[start + row] = (layers, mask)
        self._view = None


def _token_bytes(model: Transformer) -> int:
    """Return what one token takes in the cache of a model that writes."""
    if model.config.decoder is None:
        return 1
    cache = model.new_cache(1, 1)
    return sum(store.numel() * store.element_size() for store in (*cache.keys, *cache.values))
