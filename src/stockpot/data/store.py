"""Encoded documents, wherever they lie: in memory or in memory-mapped shards.

A `TokenStore` answers one question, "give me these tokens of this document", and can set documents aside for
validation. It decides no order, no rows and no labels, and it never copies a corpus.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from stockpot.errors import DataError

__all__ = ["StoreBuilder", "TokenStore", "id_type"]

Ids = NDArray[np.integer]
_CHUNK_TOKENS = 4_000_000


def id_type(vocab_size: int) -> np.dtype[np.unsignedinteger]:
    """Choose the smallest type that holds every id: uint16 or uint32."""
    return np.dtype("<u2") if vocab_size <= 1 << 16 else np.dtype("<u4")


@dataclass(frozen=True, eq=False)
class TokenStore:
    """Documents as token ids.

    Document d is ``parts[part[d]][start[d] : start[d] + lengths[d]]``. Shapes: part, start and lengths
    ``(documents,)``; each of ``counted`` is as long as its part.

    Args:
        parts: flat arrays of ids; they may be memory-mapped.
        part: which array each document is in.
        start: where in it the document begins.
        lengths: tokens of each document.
        fingerprint: sha256 of the tokenizer and of all ids; two stores with one fingerprint are equal.
        counted: which tokens count as targets, aligned with ``parts``; None: all do.
    """

    parts: Sequence[Ids] = field(repr=False)
    part: NDArray[np.int32] = field(repr=False)
    start: NDArray[np.int64] = field(repr=False)
    lengths: NDArray[np.int64] = field(repr=False)
    fingerprint: str
    counted: Sequence[NDArray[np.bool_]] | None = field(default=None, repr=False)

    @property
    def documents(self) -> int:
        """How many documents there are."""
        return len(self.lengths)

    @cached_property
    def tokens(self) -> int:
        """How many tokens all documents have together."""
        return int(self.lengths.sum())

    def read(self, document: int, start: int = 0, stop: int | None = None) -> Ids:
        """Give the ids of ``document[start:stop]`` as a view, not a copy."""
        first = int(self.start[document])
        length = int(self.lengths[document])
        stop = length if stop is None else min(stop, length)
        flat = self.parts[int(self.part[document])]
        return flat[first + start : first + stop]

    def split(self, share: float, *, seed: int = 0) -> tuple[TokenStore, TokenStore]:
        """Set documents aside: ``(training, held_out)`` with about ``share`` of the tokens in the second.

        Whole documents are drawn at random. When there are too few for that to come out near ``share``
        (a corpus that is one long text), the end of the longest document is held out instead.

        Raises:
            DataError: if nothing would be left on one of the sides.
        """
        if not 0 < share < 1:
            raise ValueError(f"share must lie between 0 and 1, not {share}")
        wanted = max(1, int(self.tokens * share))
        order = np.random.default_rng(seed).permutation(self.documents)
        taken = np.cumsum(self.lengths[order])
        count = int(np.searchsorted(taken, wanted)) + 1
        if count < self.documents and taken[count - 1] <= 1.5 * wanted + 64:
            held = np.sort(order[:count])
            return self._only(np.sort(order[count:]), f"-{share}-{seed}"), self._only(
                held, f"+{share}-{seed}"
            )
        return self._cut_end(wanted)

    def _only(self, kept: NDArray[np.integer], mark: str) -> TokenStore:
        return self._with(self.part[kept], self.start[kept], self.lengths[kept], mark)

    def _cut_end(self, wanted: int) -> tuple[TokenStore, TokenStore]:
        longest = int(np.argmax(self.lengths))
        kept = int(self.lengths[longest]) - wanted
        if kept < 2 or wanted < 2:
            raise DataError(
                f"The corpus ({self.tokens} tokens in {self.documents} documents) "
                "is too small to hold out a part.",
                "Give more text, or name validation data of its own.",
            )
        lengths = self.lengths.copy()
        lengths[longest] = kept
        training = self._with(self.part, self.start, lengths, f"-end{wanted}")
        row = slice(longest, longest + 1)
        held = self._with(
            self.part[row], self.start[row] + kept, np.array([wanted], np.int64), f"+end{wanted}"
        )
        return training, held

    def _with(
        self, part: NDArray[np.int32], start: NDArray[np.int64], lengths: NDArray[np.int64], mark: str
    ) -> TokenStore:
        fingerprint = hashlib.sha256(f"{self.fingerprint}{mark}".encode()).hexdigest()
        return TokenStore(self.parts, part, start, lengths, fingerprint, self.counted)


class StoreBuilder:
    """Collect documents into a `TokenStore` in memory, two or four bytes a token.

    Args:
        tokenizer_fingerprint: goes into the store's fingerprint.
        vocab_size: decides the width of an id.
    """

    def __init__(self, tokenizer_fingerprint: str, vocab_size: int) -> None:
        self._type = id_type(vocab_size)
        self._digest = hashlib.sha256(tokenizer_fingerprint.encode())
        self._parts: list[Ids] = []
        self._counted: list[NDArray[np.bool_]] = []
        self._lengths: list[list[int]] = []
        self._open: list[Ids] = []
        self._open_counted: list[NDArray[np.bool_]] = []
        self._open_lengths: list[int] = []
        self._waiting = 0

    def add(self, ids: Ids, counted: NDArray[np.bool_] | None = None) -> None:
        """Add one document; give ``counted`` for every document or for none."""
        self._open.append(ids)
        if counted is not None:
            self._open_counted.append(counted)
        self._open_lengths.append(len(ids))
        self._waiting += len(ids)
        if self._waiting >= _CHUNK_TOKENS:
            self._close_part()

    def build(self) -> TokenStore:
        """Give the store of all documents added so far."""
        if self._open:
            self._close_part()
        lengths = [np.asarray(part, np.int64) for part in self._lengths]
        starts = [np.cumsum(part) - part for part in lengths]
        part = [np.full(len(one), index, np.int32) for index, one in enumerate(lengths)]
        return TokenStore(
            parts=self._parts,
            part=np.concatenate(part) if part else np.zeros(0, np.int32),
            start=np.concatenate(starts) if starts else np.zeros(0, np.int64),
            lengths=np.concatenate(lengths) if lengths else np.zeros(0, np.int64),
            fingerprint=self._digest.hexdigest(),
            counted=self._counted or None,
        )

    def _close_part(self) -> None:
        ids = np.concatenate(self._open).astype(self._type)
        self._digest.update(np.asarray(self._open_lengths, "<i8").tobytes())
        self._digest.update(ids.data)
        if self._open_counted:
            counted = np.concatenate(self._open_counted)
            self._digest.update(np.packbits(counted).data)
            self._counted.append(counted)
        self._parts.append(ids)
        self._lengths.append(self._open_lengths)
        self._open, self._open_counted, self._open_lengths, self._waiting = [], [], [], 0
