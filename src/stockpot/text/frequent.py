"""The first merges of byte-pair learning, with numpy: pairs that occur in very many words.

The same algorithm and the same order as ``merges``, which takes over when pairs occur in so few words that
plain Python is quicker. Whether a merge may be made here, the caller says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from heapq import heapify, heappop, heappush
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["merge_frequent"]

_MANY = 200  # places of a pair from which numpy pays
_LATELY = 1 / 16  # weight of the latest merge in the mean that decides when to stop

Ints = NDArray[np.int64]


def merge_frequent(
    words: Sequence[str], weights: Sequence[int], floor: int, name: Callable[[str], str | None]
) -> list[str]:
    """Merge while pairs occur in many places, and return the words as they are then.

    Args:
        words: one character a symbol, none of them U+0000.
        weights: how often each word occurs.
        floor: a pair seen less often does not matter.
        name: makes the symbol of a pair; None to stop before this merge.
    """
    text = _Text(words, weights, floor)
    lately = 4.0 * _MANY
    while lately > _MANY and (pair := text.pop()) is not None:
        symbol = name(chr(pair >> 21) + chr(pair & 0x1FFFFF))
        if symbol is None:
            break
        lately += _LATELY * (text.merge(pair, ord(symbol)) - lately)
    return text.words()


class _Text:
    """All words in one row of symbols, linked; 0 between words, -1 where a symbol was merged into its left neighbour.

    A pair is a number: left symbol · 2^21 + right symbol.
    """

    def __init__(self, words: Sequence[str], weights: Sequence[int], floor: int) -> None:
        joined = "\0".join(["", *words, ""]).encode("utf-32-le", "surrogatepass")
        self._symbols = np.frombuffer(joined, "<u4").astype(np.int32)
        places = np.arange(len(self._symbols))
        self._after, self._before = places + 1, places - 1
        self._weights = np.append(0, np.array(weights, np.int64)).repeat([1, *(len(w) + 1 for w in words)])
        self._floor = floor
        left = np.flatnonzero((self._symbols[:-1] > 0) & (self._symbols[1:] > 0))
        pairs = _pairs(self._symbols[left], self._symbols[left + 1])
        self._counts: dict[int, int] = {}
        self._places: dict[int, Ints] = {}
        self._queue: list[tuple[int, int]] = []
        for pair, count, found in _grouped(pairs, self._weights[left], left):
            if count >= floor:
                self._counts[pair], self._places[pair] = count, found
                self._queue.append((-count, pair))
        heapify(self._queue)

    def pop(self) -> int | None:
        """Return the most frequent pair, smaller symbols first among equals."""
        while self._queue:
            count, pair = heappop(self._queue)
            now = self._counts.get(pair, 0)
            if now == -count:
                return pair
            if now >= self._floor:
                heappush(self._queue, (-now, pair))
        return None

    def merge(self, pair: int, symbol: int) -> int:
        """Replace ``pair`` everywhere by ``symbol``, which must be new; return the number of places looked at."""
        left, right = pair >> 21, pair & 0x1FFFFF
        symbols, after, before = self._symbols, self._after, self._before
        listed = self._places.pop(pair)
        at = listed[(symbols[listed] == left) & (symbols[after[listed]] == right)]
        if left == right:
            at = _apart(at, after)
        gone = after[at]
        beyond = after[gone]
        lost = np.concatenate((_pairs(symbols[before[at]], left), _pairs(right, symbols[beyond])))
        symbols[at], symbols[gone] = symbol, -1
        after[at], before[beyond] = beyond, at
        ahead = before[at]
        made = np.concatenate((_pairs(symbols[ahead], symbol), _pairs(symbol, symbols[beyond])))
        counted = made > 0
        counted[len(at) :] &= symbols[beyond] != symbol  # two places in a row share what lies between them
        weights = np.tile(self._weights[at], 2)[counted]
        for old, count, _ in _grouped(lost[counted], weights, weights):
            if old in self._counts:
                self._counts[old] -= count
        del self._counts[pair]
        for new, count, found in _grouped(made[counted], weights, np.concatenate((ahead, at))[counted]):
            if count >= self._floor:
                self._counts[new], self._places[new] = count, found
                heappush(self._queue, (-count, new))
        return len(listed)

    def words(self) -> list[str]:
        """Return the words as they are now."""
        codes = self._symbols[self._symbols >= 0].astype("<u4").tobytes()
        return codes.decode("utf-32-le", "surrogatepass")[1:-1].split("\0")


def _pairs(left: Any, right: Any) -> Ints:
    """Return the numbers of pairs; 0 where one side is no symbol but the end of a word."""
    numbers: Ints = (np.asarray(left, np.int64) << 21) | right
    numbers[(np.asarray(left) <= 0) | (np.asarray(right) <= 0)] = 0
    return numbers


def _apart(at: Ints, after: Ints) -> Ints:
    """Of places of a doubled symbol, keep those that can be joined from the left without overlap."""
    at = np.sort(at)
    number = np.arange(len(at))
    is_next = np.concatenate(([False], after[at[:-1]] == at[1:]))
    first = np.maximum.accumulate(np.where(is_next, 0, number))
    apart: Ints = at[(number - first) % 2 == 0]
    return apart


def _grouped(pairs: Ints, weights: Ints, places: Ints) -> Iterator[tuple[int, int, Ints]]:
    """Yield each pair, its total weight and its places."""
    if not len(pairs):
        return
    order = np.argsort(pairs)
    pairs, places = pairs[order], places[order]
    starts = np.concatenate(([0], np.flatnonzero(pairs[1:] != pairs[:-1]) + 1))
    counts = np.add.reduceat(weights[order], starts).tolist()
    bounds = pairwise([*starts.tolist(), len(pairs)])
    for pair, count, (first, last) in zip(pairs[starts].tolist(), counts, bounds, strict=True):
        yield pair, count, places[first:last]
