"""Beginnings that were read before: their keys and values are kept, so that they are computed once.

A system prompt, a few-shot block or a conversation so far is found again by its ids. What is kept is bounded in bytes;
what was used longest ago goes first. Only what every later token would see anyway is kept, so an answer does not
depend on it (beyond rounding, and with our kernels not at all).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from stockpot.model.cache import KVCache
from stockpot.model.transformer import Transformer

__all__ = ["LEAST", "Held", "Prefixes", "shared_beginning", "shared_length", "weights_state"]

LEAST = 16  # tokens from which copying is clearly cheaper than computing


@dataclass(frozen=True)
class Held:
    """Keys and values of a sequence of ids, per layer ``(kv_heads, seq, head_dim)``."""

    ids: tuple[int, ...]
    layers: tuple[tuple[Tensor, Tensor], ...]

    @classmethod
    def of(cls, ids: Sequence[int], cache: KVCache, row: int) -> Held:
        """Copy the first ``len(ids)`` tokens that a row of a cache holds."""
        length = len(ids)
        layers = tuple(
            (keys[row, :, :length].clone(), values[row, :, :length].clone())
            for keys, values in zip(cache.keys, cache.values, strict=True)
        )
        return cls(tuple(ids), layers)

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values."""
        return sum(keys.nbytes + values.nbytes for keys, values in self.layers)

    def put(self, cache: KVCache, rows: slice, length: int) -> None:
        """Write the first ``length`` tokens into rows of a cache; the caller sets the rows' lengths."""
        for layer, (keys, values) in enumerate(self.layers):
            cache.keys[layer][rows, :, :length] = keys[:, :length]
            cache.values[layer][rows, :, :length] = values[:, :length]


class Prefixes:
    """Keeps what was read, up to a number of bytes; 0 keeps nothing.

    The weights must stay as they are: a change that the parameters' version numbers show empties the store.
    """

    def __init__(self, model: Transformer, most_bytes: int) -> None:
        self._model, self._most = model, most_bytes
        self._held: list[Held] = []  # used longest ago first
        self._state: object = None
        # A prompt read in both directions, or by an encoder, has no beginning that could be kept.
        config = model.config
        self.is_on = most_bytes > 0 and config.encoder is None and config.main.attends == "causal"

    @property
    def nbytes(self) -> int:
        """Bytes kept at present."""
        return sum(held.nbytes for held in self._held)

    def find(self, ids: Sequence[int]) -> tuple[Held | None, int]:
        """Return what shares the longest beginning with ``ids``, and how many ids that is.

        The last id is never part of it, since somebody has to compute what follows. Fewer than ``LEAST`` do not count.
        """
        if not self.is_on or not self._held:
            return None, 0
        self._refresh()
        wanted = tuple(ids[:-1])
        best, most = None, LEAST - 1
        for held in self._held:
            length = shared_length(held.ids, wanted)
            if length > most:
                best, most = held, length
        if best is None:
            return None, 0
        self._held.remove(best)
        self._held.append(best)
        return best, most

    def keep(self, ids: Sequence[int], cache: KVCache, row: int) -> None:
        """Keep what a row holds of ``ids``: as much of their beginning as the bound allows."""
        if not self.is_on:
            return
        self._refresh()
        each = sum(store[row, :, :1].nbytes for store in (*cache.keys, *cache.values))
        wanted = tuple(ids[: self._most // each])
        known = [shared_length(held.ids, wanted) for held in self._held]
        if len(wanted) < LEAST or len(wanted) in known:
            return
        self._held = [held for held, length in zip(self._held, known, strict=True) if length < len(held.ids)]
        room = self._most - len(wanted) * each
        while self._held and self.nbytes > room:
            self._held.pop(0)
        self._held.append(Held.of(wanted, cache, row))

    def forget(self) -> None:
        """Drop everything."""
        self._held = []

    def _refresh(self) -> None:
        """Drop everything if the model is no longer what it was."""
        state = weights_state(self._model)
        if state != self._state:
            self.forget()
            self._state = state


def weights_state(model: Transformer) -> tuple[object, ...]:
    """Sum up what tells whether weights changed: where they are, how often they were written, which adapters act.

    Every prompt asks it, so it walks the modules itself: ``parameters()`` takes some milliseconds.
    """
    state: list[object] = []
    waiting: list[nn.Module | None] = [model]
    while waiting:
        module = waiting.pop()
        if module is None:
            continue
        for weight in module._parameters.values():
            if weight is not None:
                state += (weight.data_ptr(), 0 if weight.is_inference() else weight._version)
        state.append(module.__dict__.get("is_on"))
        waiting += module._modules.values()
    return tuple(state)


def shared_length(a: Sequence[int], b: Sequence[int]) -> int:
    """Count the ids with which both begin.

    >>> shared_length((1, 2, 3), (1, 2, 4, 5))
    2
    """
    low, high = 0, min(len(a), len(b))
    while low < high:  # comparing slices is much faster than comparing ids one by one
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def shared_beginning(rows: Iterable[Sequence[int]]) -> int:
    """Count the ids with which all rows begin."""
    first, *others = rows
    length = len(first)
    for row in others:
        length = min(length, shared_length(first, row))
    return length
