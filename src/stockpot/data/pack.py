"""Documents into rows: which tokens stand together.

Decides where long documents are cut, which pieces share a row, and the order of rows in an epoch, all as a
function of lengths, settings and seed: nothing is remembered between windows, so any position can be found
again. It also fills the rows with aligned labels. It reads no file and knows no objective.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stockpot.data.batch import IGNORED
from stockpot.data.store import TokenStore

__all__ = [
    "Alone",
    "Documents",
    "Epoch",
    "Mask",
    "Pieces",
    "Row",
    "Rows",
    "Stream",
    "best_fit",
    "cut",
    "fill",
]

Ints = NDArray[np.int64]
Row = list[tuple[int, int, int]]
"""Pieces that stand in one row: (document, start, stop)."""

Mask = Literal["documents", "real"] | None

WINDOW_ROWS = 1024
_MANY_PIECES = 8


@dataclass(frozen=True, eq=False)
class Pieces:
    """Parts of documents, none longer than the context; shapes ``(pieces,)``."""

    documents: Ints
    starts: Ints
    stops: Ints

    @cached_property
    def lengths(self) -> Ints:
        """Tokens of each piece."""
        return self.stops - self.starts

    def row(self, indices: Sequence[int]) -> Row:
        """Look up some pieces."""
        return [(int(self.documents[i]), int(self.starts[i]), int(self.stops[i])) for i in indices]


def cut(lengths: Ints, context: int, rng: np.random.Generator | None = None) -> Pieces:
    """Cut documents into as few pieces of at most ``context`` tokens as can be.

    A document that fits is one piece. With ``rng`` the first piece of a longer one has a random length within
    what the smallest number of pieces allows, so that other tokens meet in each epoch; documents of many
    pieces may get one more.
    """
    count = -(-lengths // context)
    slack = count * context - lengths
    if rng is None:
        missing = np.zeros(len(lengths), np.int64)  # what the first piece lacks to be full
    else:
        more = (count >= _MANY_PIECES) & (slack < context // 2)
        count = count + more
        slack = slack + more * context
        low, high = np.maximum(0, slack - context + 1), np.minimum(slack, context - 1)
        missing = rng.integers(low, high + 1)
    whose = np.repeat(np.arange(len(lengths)), count)
    index = np.arange(len(whose)) - np.repeat(np.cumsum(count) - count, count)
    first = np.where(count == 1, lengths, context - missing)[whose]
    starts = np.where(index == 0, 0, first + (index - 1) * context)
    stops = np.minimum(np.where(index == 0, first, starts + context), lengths[whose])
    return Pieces(whose, starts, stops)


def best_fit(lengths: Sequence[int] | Ints, capacity: int) -> list[list[int]]:
    """Put items into as few rows as possible: the longest first, each into the fullest row that takes it.

    Returns the indices of each row's items. Rows with equal room are found through a bit set, so that an item
    costs about a microsecond whatever the number of rows.

    Source: best-fit decreasing; Johnson 1973, and for documents Ding et al. 2024, arXiv:2404.10830.
    """
    sizes = np.asarray(lengths)
    rows: list[list[int]] = []
    with_room: list[list[int]] = [[] for _ in range(capacity + 1)]
    rooms = 0  # bit r is set when some row has room for r more tokens
    for item, size in zip(*(a.tolist() for a in _longest_first(sizes)), strict=True):
        fitting = rooms >> size
        if fitting:
            room = size + (fitting & -fitting).bit_length() - 1
            row = with_room[room].pop()
            if not with_room[room]:
                rooms ^= 1 << room
        else:
            room, row = capacity, len(rows)
            rows.append([])
        rows[row].append(item)
        if left := room - size:
            with_room[left].append(row)
            rooms |= 1 << left
    return rows


def _longest_first(sizes: Ints) -> tuple[Ints, Ints]:
    order = np.argsort(-sizes, kind="stable")
    return order, sizes[order]


# --- an epoch: windows of groups of rows ---


class Epoch:
    """All rows of one pass, as windows of groups; a group is what is never torn apart: some rows.

    ``rng`` orders the rows; None keeps the documents' order.
    """

    windows: int

    def groups(self, window: int) -> list[list[Row]]:
        """Give the groups of a window, always the same."""
        raise NotImplementedError


class Documents(Epoch):
    """Several documents in a row, none seeing another: windows of pieces, best fit within each."""

    def __init__(self, lengths: Ints, context: int, seed: tuple[int, ...] | None) -> None:
        self._context, self._seed = context, seed
        rng = None if seed is None else np.random.default_rng(seed)
        self._pieces = cut(lengths, context, rng)
        count = len(self._pieces.starts)
        self._order = np.arange(count) if rng is None else rng.permutation(count)
        mean = self._pieces.lengths.mean() if count else context
        self._size = max(1, int(WINDOW_ROWS * context / mean))
        self.windows = -(-count // self._size)

    def groups(self, window: int) -> list[list[Row]]:
        """Pack one window; each group is one row."""
        chosen = self._order[window * self._size : (window + 1) * self._size]
        rows = best_fit(self._pieces.lengths[chosen], self._context)
        if self._seed is None:
            rows = sorted((sorted(row) for row in rows), key=lambda row: row[0])
        else:
            rows = _shuffled(rows, (*self._seed, window))
        return [[self._pieces.row(chosen[row].tolist())] for row in rows]


class Alone(Epoch):
    """One piece a row, rows of like length together, so that little of a batch is padding.

    Args:
        lengths: tokens of each document.
        context: the longest piece.
        seed: orders the groups; None keeps the documents' order.
        rows: rows of a group, or
        tokens: positions of a group, padding included; at least one row.
    """

    def __init__(
        self,
        lengths: Ints,
        context: int,
        seed: tuple[int, ...] | None,
        *,
        rows: int,
        tokens: int | None = None,
    ) -> None:
        self._seed, self._rows, self._tokens = seed, rows, tokens
        rng = None if seed is None else np.random.default_rng(seed)
        self._pieces = cut(lengths, context, rng)
        count = len(self._pieces.starts)
        self._order = np.arange(count) if rng is None else rng.permutation(count)
        self._size = max(WINDOW_ROWS, 32 * rows)
        self.windows = -(-count // self._size)

    def groups(self, window: int) -> list[list[Row]]:
        """Sort one window by length and cut it into groups."""
        chosen = self._order[window * self._size : (window + 1) * self._size]
        lengths = self._pieces.lengths[chosen]
        order = np.argsort(-lengths, kind="stable")
        groups: list[list[int]] = []
        at = 0
        while at < len(order):
            longest = int(lengths[order[at]])
            take = self._rows if self._tokens is None else max(1, self._tokens // longest)
            groups.append(chosen[order[at : at + take]].tolist())
            at += take
        if self._seed is not None:
            groups = _shuffled(groups, (*self._seed, window))
        return [[self._pieces.row([index]) for index in group] for group in groups]


class Stream(Epoch):
    """All documents one after another, cut every ``context`` tokens: no padding, and all of a row is seen.

    With a seed the cuts fall elsewhere in each epoch; the ends that fill no row wait for another epoch.
    """

    def __init__(self, lengths: Ints, context: int, seed: tuple[int, ...] | None) -> None:
        self._context, self._lengths = context, lengths
        rng = None if seed is None else np.random.default_rng(seed)
        self._order = np.arange(len(lengths)) if rng is None else rng.permutation(len(lengths))
        self._ends = np.cumsum(lengths[self._order])
        total = int(self._ends[-1]) if len(lengths) else 0
        self._shift = 0 if rng is None else int(rng.integers(0, min(context, max(1, total - context + 1))))
        rows = max(0, (total - self._shift) // context)
        self._rows = np.arange(rows) if rng is None else rng.permutation(rows)
        self.windows = -(-rows // WINDOW_ROWS)

    def groups(self, window: int) -> list[list[Row]]:
        """Look up the documents under each row of the window; each group is one row."""
        rows = self._rows[window * WINDOW_ROWS : (window + 1) * WINDOW_ROWS].tolist()
        return [[self._row(self._shift + row * self._context)] for row in rows]

    def _row(self, start: int) -> Row:
        row: Row = []
        at, stop = start, start + self._context
        place = int(np.searchsorted(self._ends, start, side="right"))
        while at < stop:
            document = int(self._order[place])
            length = int(self._lengths[document])
            first = int(self._ends[place]) - length
            to = min(stop, first + length)
            row.append((document, at - first, to - first))
            at, place = to, place + 1
        return row


def _shuffled(items: list[list[int]], seed: tuple[int, ...]) -> list[list[int]]:
    return [items[i] for i in np.random.default_rng(seed).permutation(len(items))]


# --- filling ---


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows full of tokens, before an objective makes a batch of them.

    Shapes: ids and labels ``(rows, seq)`` int64, documents ``(rows, seq)`` int32: the number of the document
    within its row, from 1; 0 = padding. ``labels`` are next tokens; −100 where a document ends.

    Args:
        ids: the tokens.
        labels: what follows each of them in its document, if that counts.
        documents: which document of the row each belongs to.
        pieces: what each row was made of.
        seeds: one seed a row: the same row gets the same draws wherever it stands.
        store: where the tokens come from.
        mask: how visibility is told: ``documents`` (numbers, no document sees another), ``real`` (a row is
            one document) or None (no padding, and all of a row is seen). The same in all batches of a run.
    """

    ids: Ints
    labels: Ints
    documents: NDArray[np.int32]
    pieces: Sequence[Row]
    seeds: Sequence[tuple[int, ...]]
    store: TokenStore
    mask: Mask = "documents"

    def rng(self, row: int) -> np.random.Generator:
        """Give the row's own random numbers."""
        return np.random.default_rng(self.seeds[row])

    def piece(self, row: int) -> Ints:
        """Give the tokens of a row that is one piece, without its padding."""
        ((_, start, stop),) = self.pieces[row]
        return self.ids[row, : stop - start]

    def attention_mask(self) -> Tensor | None:
        """Say who sees whom, in the form that ``mask`` names."""
        if self.mask is None:
            return None
        return torch.from_numpy(self.documents if self.mask == "documents" else self.documents > 0)


def fill(
    store: TokenStore, rows: Sequence[Row], width: int, pad_id: int
) -> tuple[Ints, Ints, NDArray[np.int32]]:
    """Copy the pieces of ``rows`` into arrays of ``width`` columns: ids, labels, document numbers.

    The label of a piece's last token is the next token of its document, even when that stands in another row.
    """
    ids = np.full((len(rows), width), pad_id, np.int64)
    labels = np.full((len(rows), width), IGNORED, np.int64)
    documents = np.zeros((len(rows), width), np.int32)
    for r, row in enumerate(rows):
        column = 0
        for number, (document, start, stop) in enumerate(row, 1):
            base = int(store.start[document])
            part = int(store.part[document])
            flat = store.parts[part]
            to = column + stop - start
            ids[r, column:to] = flat[base + start : base + stop]
            following = flat[base + start + 1 : base + min(stop + 1, int(store.lengths[document]))]
            target = labels[r, column : column + len(following)]
            target[:] = following
            if store.counted is not None:
                target[~store.counted[part][base + start + 1 : base + start + 1 + len(following)]] = IGNORED
            documents[r, column:to] = number
            column = to
    return ids, labels, documents
