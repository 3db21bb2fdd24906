"""Encode many words at once by byte-pair merging, with numpy.

The engine takes one word at a time. Here all words of a batch take their next merge together: in each of them the
pair learned first goes first, of several places the leftmost, which is the engine's order, so the ids are the
engine's. This file decides which tokenizers and which words that holds for; cutting text into words is done elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stockpot.text.kinds import BYTE_LETTERS, SPACE_MARK

__all__ = ["LONGEST", "WordMerger"]

LONGEST = 64  # bytes of a word; a longer one is left to the engine
_NEVER = np.int32(0x7FFFFFFF)
_FREE = np.uint64(0xFFFFFFFFFFFFFFFF)
_WORDS_AT_ONCE = 4096

Ints = NDArray[np.int32]
Places = NDArray[np.int64]


class WordMerger:
    """The merges of one tokenizer, laid out for many words at once.

    Args:
        letters: id of each byte ``(256,)``, -1 where the model has none.
        merges: left id, right id and merged id of each merge, ``(merges, 3)``, in the order learned.

    Attributes:
        known: the ASCII characters the model has.
    """

    def __init__(self, letters: Ints, merges: Ints) -> None:
        self._letters = letters
        self.known = bytes(byte for byte in range(128) if letters[byte] >= 0)
        self._pairs = _PairTable(merges[:, 0], merges[:, 1])
        self._merged = np.append(merges[:, 2], np.int32(-1))

    @classmethod
    def of(cls, spec: Mapping[str, Any]) -> WordMerger | None:
        """Return the merger of a parsed tokenizer.json; None where its model does more than merge."""
        model = spec["model"]
        plain = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "ignore_merges")
        if model["type"] != "BPE" or any(model.get(name) for name in plain):
            return None
        vocabulary = model["vocab"]
        letters = np.array([vocabulary.get(letter, -1) for letter in _spellings(spec)], np.int32)
        merges = np.empty((len(model["merges"]), 3), np.int32)
        merges[:, 0] = [vocabulary[left] for left, _ in model["merges"]]
        merges[:, 1] = [vocabulary[right] for _, right in model["merges"]]
        merges[:, 2] = [vocabulary[left + right] for left, right in model["merges"]]
        is_twice = len(np.unique(_keys(merges[:, 0], merges[:, 1]))) < len(merges)
        return None if is_twice else cls(letters, merges)

    def can_take(self, text: bytes) -> bool:
        """Say whether ``text`` is short enough, and ASCII of known letters."""
        return len(text) <= LONGEST and not text.translate(None, self.known)

    def encode(self, words: Sequence[bytes]) -> tuple[Ints, Places]:
        """Return the ids of all ``words``, one after another, and how many each has.

        A word is what the splitting calls one, and must pass :meth:`can_take`.
        """
        data = np.frombuffer(b"".join(words) + bytes(LONGEST), np.uint8)
        lengths = np.fromiter(map(len, words), np.int64, len(words))
        starts = np.cumsum(lengths) - lengths
        symbols = self._letters[data]
        ids = np.empty(len(data), np.int32)
        counts = np.zeros(len(words), np.int64)
        for some in _alike(lengths):
            rows = np.arange(int(lengths[some[-1]]))[:, None]
            grid = np.where(rows < lengths[some], symbols[starts[some] + rows], np.int32(-1))
            self._merge(grid)
            is_left = grid >= 0
            counts[some] = is_left.sum(axis=0)
            places = starts[some] + np.cumsum(is_left, axis=0) - 1
            ids[places[is_left]] = grid[is_left]
        total = int(counts.sum())
        taken = np.arange(total) + np.repeat(starts - np.cumsum(counts) + counts, counts)
        return ids[taken], counts

    def _merge(self, grid: Ints) -> None:
        """Merge in place ``(longest, words)``; a symbol swallowed by its left neighbour becomes -1."""
        height, width = grid.shape
        symbols = np.concatenate((grid.ravel(), np.full(width, -1, np.int32)))  # a last row beyond every end
        places = np.arange(height * width)
        end = height * width + np.arange(width)
        after = np.concatenate((places + width, end))
        before = np.concatenate((end, places[: (height - 1) * width], end))
        order = np.full((height + 1) * width, _NEVER, np.int32)  # which merge goes first, then which place
        order[: -2 * width] = self._order(symbols, places[: (height - 1) * width], width)
        table = order.reshape(height + 1, width)
        while True:
            first = table.min(axis=0)
            words = np.flatnonzero(first != _NEVER)
            if not len(words):
                break
            first = first[words]
            at = (first & (LONGEST - 1)) * width + words
            gone = after[at]
            beyond = after[gone]
            symbols[at] = self._merged[first // LONGEST]
            symbols[gone] = -1
            order[gone] = _NEVER
            after[at] = beyond
            before[beyond] = at
            ahead = before[at]
            order[at] = self._order(symbols, at, width, beyond)
            order[ahead] = self._order(symbols, ahead, width, at)
            order[-width:] = _NEVER
        grid[:] = symbols[:-width].reshape(height, width)

    def _order(self, symbols: Ints, left: Places, width: int, right: Places | None = None) -> Ints:
        ranks = self._pairs.find(symbols[left], symbols[left + width if right is None else right])
        order = ranks * np.int32(LONGEST) + (left // width).astype(np.int32)
        return np.where(ranks >= 0, order, _NEVER)


class _PairTable:
    """Numbers of pairs of ids, found by hashing."""

    def __init__(self, left: Ints, right: Ints) -> None:
        keys = _keys(left, right)
        self._bits = max(4, (4 * len(keys)).bit_length())
        self._keys = np.full(1 << self._bits, _FREE)
        self._numbers = np.full(1 << self._bits, -1, np.int32)
        slot = self._home(keys)
        pending = np.arange(len(keys))
        while len(pending):
            free = pending[self._keys[slot[pending]] == _FREE]
            _, first = np.unique(slot[free], return_index=True)  # of several for one slot, the first gets it
            placed = free[first]
            self._keys[slot[placed]] = keys[placed]
            self._numbers[slot[placed]] = placed
            pending = np.setdiff1d(pending, placed, assume_unique=True)
            slot[pending] = (slot[pending] + 1) & ((1 << self._bits) - 1)

    def _home(self, keys: NDArray[np.uint64]) -> Places:
        mixed = (keys ^ (keys >> np.uint64(29))) * np.uint64(0x9E3779B97F4A7C15)
        return (mixed >> np.uint64(64 - self._bits)).astype(np.int64)

    def find(self, left: Ints, right: Ints) -> Ints:
        """Return the number of each pair, -1 where there is none."""
        keys = _keys(left, right)
        slot = self._home(keys)
        seen = self._keys[slot]
        numbers = np.where(seen == keys, self._numbers[slot], np.int32(-1))
        pending = np.flatnonzero((seen != keys) & (seen != _FREE))
        while len(pending):
            slot[pending] = (slot[pending] + 1) & ((1 << self._bits) - 1)
            seen = self._keys[slot[pending]]
            found = seen == keys[pending]
            numbers[pending[found]] = self._numbers[slot[pending[found]]]
            pending = pending[~found & (seen != _FREE)]
        return numbers


def _keys(left: Ints, right: Ints) -> NDArray[np.uint64]:
    return (left.astype(np.uint64) << np.uint64(32)) | right.astype(np.uint32)


def _spellings(spec: Mapping[str, Any]) -> list[str]:
    """Return how the model spells each byte that stands in a word: its letter, or for a space its mark."""
    steps = re.findall(r"'type': '(ByteLevel|Metaspace)'", str(spec.get("pre_tokenizer")))
    if "ByteLevel" in steps:
        return BYTE_LETTERS
    ascii_letters = [SPACE_MARK if byte == 0x20 and steps else chr(byte) for byte in range(128)]
    return ascii_letters + [""] * 128


def _alike(lengths: Places) -> Iterator[Places]:
    """Yield the numbers of words of about equal length together, the longest of a group last."""
    order = np.argsort(lengths, kind="stable")
    order = order[np.searchsorted(lengths[order], 1) :]  # an empty word has no ids
    for at in range(0, len(order), _WORDS_AT_ONCE):
        yield order[at : at + _WORDS_AT_ONCE]
