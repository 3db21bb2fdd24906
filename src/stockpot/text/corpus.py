"""Encode many texts at once: each distinct piece goes through the engine once, the rest is looked up.

Decides when looking up is allowed (the way this tokenizer splits text has a known set of certain cuts) and
how ids are gathered. Whether a cut is certain is ``pieces``' business. The ids equal the engine's own,
always.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import compress, islice
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer as Engine

from stockpot.text.bytepairs import LONGEST, WordMerger
from stockpot.text.pieces import (
    CUT_RULES,
    GPT2_PATTERN,
    WORD_PATTERN,
    CutRule,
    PieceTable,
    are_letters,
    as_blocks,
    ascii_words,
    parts,
    spans,
    utf8,
)

__all__ = ["CorpusEncoder", "cut_rule"]

_REMEMBERED = 1 << 20
_REMEMBERED_IDS = 1 << 24
_BLOCKS_AT_ONCE = 16  # new words of so many are merged together


def cut_rule(spec: dict[str, Any]) -> CutRule | None:
    """Return where a tokenizer (a parsed tokenizer.json) lets text be cut; None if nothing is certain."""
    if spec.get("normalizer") is not None or spec["model"].get("dropout"):
        return None
    steps = _steps(spec.get("pre_tokenizer"))
    model = spec["model"]
    if model["type"] == "BPE" and not model["merges"] and not model["ignore_merges"]:
        whole_words = all(step == {"type": "ByteLevel"} for step in map(_plain, steps))
        return CUT_RULES[WORD_PATTERN] if whole_words else _pattern_rule(steps)
    return _pattern_rule(steps)


def _steps(pre_tokenizer: dict[str, Any] | None) -> list[dict[str, Any]]:
    if pre_tokenizer is None:
        return []
    return list(pre_tokenizer["pretokenizers"]) if pre_tokenizer["type"] == "Sequence" else [pre_tokenizer]


def _plain(step: dict[str, Any]) -> dict[str, Any]:
    """Reduce a step to what matters here; a step that looks beyond its own piece becomes unknown."""
    kind = step["type"]
    if kind == "ByteLevel" and not step["add_prefix_space"]:
        return {"type": "ByteLevel regex" if step["use_regex"] else "ByteLevel"}
    if kind == "Metaspace" and step["prepend_scheme"] == "never":
        return {"type": "Metaspace"}
    if kind == "Split" and step["behavior"] == "Isolated" and not step["invert"]:
        return {"type": "Split", "regex": step["pattern"].get("Regex")}
    if kind in {"WhitespaceSplit", "Digits"}:
        return {"type": kind}
    return {"type": "unknown"}


def _pattern_rule(steps: Sequence[dict[str, Any]]) -> CutRule | None:
    plain = [_plain(step) for step in steps]
    if not plain or any(step["type"] == "unknown" for step in plain):
        return None
    if plain[0]["type"] == "Split":
        return CUT_RULES.get(plain[0]["regex"])
    kinds = [step["type"] for step in plain]
    return CUT_RULES[GPT2_PATTERN] if kinds in (["ByteLevel regex"], ["Digits", "ByteLevel regex"]) else None


def ascii_splitter(spec: dict[str, Any]) -> re.Pattern[bytes] | None:
    """Return what finds the words of an ASCII piece, for a tokenizer with a cut rule.

    None where only a run of letters, with or without a space in front, is sure to be one word.
    """
    steps = [step for step in map(_plain, _steps(spec.get("pre_tokenizer"))) if step["type"] != "Metaspace"]
    if not spec["model"].get("merges"):
        return re.compile(rb"(?s:.+)")
    if [step["type"] for step in steps] == ["ByteLevel regex"]:
        return ascii_words(GPT2_PATTERN)
    is_one_split = [step["type"] for step in steps if step["type"] != "ByteLevel"] == ["Split"]
    return ascii_words(steps[0]["regex"]) if is_one_split else None


class CorpusEncoder:
    """Encodes texts through a table of pieces seen before. Not for several threads at once.

    Args:
        engine: must treat special spellings as ordinary text.
        spec: the same tokenizer, a parsed tokenizer.json.
        rule: from :func:`cut_rule` of it.
    """

    def __init__(self, engine: Engine, spec: dict[str, Any], rule: CutRule) -> None:
        self._engine = engine
        added = list(engine.get_added_tokens_decoder().values())
        self._unsafe = [token.content for token in added if not token.special]  # found across cuts
        self._merger = WordMerger.of(spec)
        self._splitter = ascii_splitter(spec)
        self._table = PieceTable(rule, self._admit)
        self._forget()

    def _forget(self) -> None:
        self._table.clear()
        self._new: list[bytes] = []  # pieces that have a number and no ids yet
        self._ids = np.zeros(1 << 12, np.int32)
        self._first = np.zeros(1 << 12, np.int64)  # where a piece's ids begin
        self._count = np.zeros(1 << 12, np.int64)
        self._used = 0

    def _admit(self, pieces: list[bytes]) -> None:
        self._new += pieces

    def _learn(self) -> None:
        """Find the ids of the new pieces: by merging where that is sure, through the engine elsewhere."""
        pieces, start = self._new, self._table.size - len(self._new)
        self._new = []
        if not pieces:
            return
        known = b"" if self._merger is None else self._merger.known
        is_word = are_letters(pieces, LONGEST, known)
        self._merge(np.flatnonzero(is_word) + start, [[piece] for piece in compress(pieces, is_word)])
        split: list[list[bytes]] = []
        numbers: list[int] = []
        others: list[int] = []
        for number in np.flatnonzero(~is_word).tolist():
            words = self._split(pieces[number])
            if words:
                split.append(words)
            (numbers if words else others).append(start + number)
        self._merge(np.array(numbers, np.int64), split)
        if others:
            texts = [pieces[number - start].decode() for number in others]
            rows = [row.ids for row in self._engine.encode_batch_fast(texts, add_special_tokens=False)]
            counts = np.array([len(row) for row in rows], np.int64)
            ids = np.fromiter((n for row in rows for n in row), np.int32, int(counts.sum()))
            self._store(np.array(others, np.int64), ids, counts)

    def _split(self, piece: bytes) -> list[bytes]:
        """Return the words of a piece; none where only the engine is sure of them."""
        if self._merger is None or self._splitter is None or not self._merger.can_take(piece):
            return []
        return self._splitter.findall(piece)

    def _merge(self, numbers: NDArray[np.int64], pieces: list[list[bytes]]) -> None:
        """Store the ids of pieces, given as words."""
        if self._merger is None or not pieces:
            return
        ids, counts = self._merger.encode([word for words in pieces for word in words])
        sizes = np.fromiter(map(len, pieces), np.int64, len(pieces))
        self._store(numbers, ids, np.add.reduceat(counts, np.cumsum(sizes) - sizes))

    def _store(self, numbers: NDArray[np.int64], ids: NDArray[np.int32], counts: NDArray[np.int64]) -> None:
        self._first = _room(self._first, int(numbers[-1]) + 1)
        self._count = _room(self._count, int(numbers[-1]) + 1)
        self._count[numbers] = counts
        self._first[numbers] = self._used + np.cumsum(counts) - counts
        self._ids = _room(self._ids, self._used + len(ids))
        self._ids[self._used : self._used + len(ids)] = ids
        self._used += len(ids)

    def encode(self, texts: Sequence[str]) -> list[NDArray[np.int32]]:
        """Return the ids of each text."""
        if self._unsafe:
            return self._encode_around(texts)
        return self._encode_all(texts)

    def _encode_around(self, texts: Sequence[str]) -> list[NDArray[np.int32]]:
        risky = [any(token in text for token in self._unsafe) for text in texts]
        quick = iter(self._encode_all(t for t, is_risky in zip(texts, risky, strict=True) if not is_risky))
        return [self._plain(t) if is_risky else next(quick) for t, is_risky in zip(texts, risky, strict=True)]

    def _plain(self, text: str) -> NDArray[np.int32]:
        utf8(text)
        return np.array(self._engine.encode(text, add_special_tokens=False).ids, np.int32)

    def _encode_all(self, texts: Iterable[str]) -> list[NDArray[np.int32]]:
        sizes: list[int] = []  # parts of each text: all but very long ones are one

        def cut() -> Iterator[bytes]:
            for text in texts:
                found = list(parts(utf8(text), self._table.rule))
                sizes.append(len(found))
                yield from found

        rows = self._encode_parts(cut())
        if len(rows) == len(sizes):
            return rows
        each = iter(rows)
        return [np.concatenate(list(islice(each, size))) for size in sizes]

    def _encode_parts(self, texts: Iterable[bytes]) -> list[NDArray[np.int32]]:
        rows: list[NDArray[np.int32]] = []
        blocks = as_blocks(texts)
        while group := list(islice(blocks, _BLOCKS_AT_ONCE)):
            if self._table.size > _REMEMBERED or self._used > _REMEMBERED_IDS:
                self._forget()
            numbered = [self._table.number(block) for block in group]
            self._learn()
            for numbers, bounds in numbered:
                rows.extend(self._gather(numbers, bounds))
        return rows

    def _gather(self, numbers: NDArray[np.int64], bounds: NDArray[np.int64]) -> Iterator[NDArray[np.int32]]:
        counts = self._count.take(numbers)
        ends = np.cumsum(counts)
        edges = np.concatenate(([0], ends))
        places = self._first.take(numbers)
        places -= edges[:-1]
        places = np.repeat(places, counts)
        places += np.arange(len(places))
        ids = self._ids.take(places)
        return (ids[start:end].copy() for start, end in spans(edges[bounds]))


def _room(array: NDArray[Any], size: int) -> NDArray[Any]:
    """Return ``array``, at least ``size`` long, growing by doubling."""
    if size <= len(array):
        return array
    return np.concatenate((array, np.zeros(2 * size - len(array), array.dtype)))
