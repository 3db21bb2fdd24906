"""Encode many texts at once: each distinct piece goes through the engine once, the rest is looked up.

Decides when looking up is allowed (the way this tokenizer splits text has a known set of certain cuts) and
how ids are gathered. Whether a cut is certain is ``pieces``' business. The ids equal the engine's own,
always.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer as Engine

from stockpot.text.pieces import (
    CUT_RULES,
    GPT2_PATTERN,
    WORD_PATTERN,
    CutRule,
    PieceTable,
    as_blocks,
    spans,
    utf8,
)

__all__ = ["CorpusEncoder", "cut_rule"]

_REMEMBERED = 1 << 20
_REMEMBERED_IDS = 1 << 24


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


class CorpusEncoder:
    """Encodes texts through a table of pieces seen before. Not for several threads at once.

    Args:
        engine: must treat special spellings as ordinary text.
        rule: from :func:`cut_rule` of the same tokenizer.
    """

    def __init__(self, engine: Engine, rule: CutRule) -> None:
        self._engine = engine
        added = list(engine.get_added_tokens_decoder().values())
        self._unsafe = [
            token.content for token in added if not token.special
        ]  # matched across cuts by the engine
        newline = engine.encode("\n", add_special_tokens=False).ids
        unknown = {token.content for token in added if token.special}
        alone = len(newline) == 1 and engine.id_to_token(newline[0]) not in unknown
        self._newline = newline[0] if alone else None
        self._table = PieceTable(rule, self._admit)
        self._forget()

    def _forget(self) -> None:
        self._table.clear()
        self._ids = np.zeros(1 << 12, np.int32)
        self._first = np.zeros(1 << 12, np.int64)  # where a piece's ids begin
        self._count = np.zeros(1 << 12, np.int64)
        self._used = 0

    def _admit(self, pieces: list[bytes]) -> None:
        """Store the ids of new pieces, which get the numbers from ``self._table.size`` on."""
        lines: list[int] = []
        others: list[int] = []
        for number, piece in enumerate(pieces, self._table.size):
            is_word = piece.isalpha() or (piece[:1] == b" " and piece[1:].isalpha())
            (lines if is_word and self._newline is not None else others).append(number)
        texts = [piece.decode() for piece in pieces]
        size = self._table.size
        if lines:
            self._store(lines, *self._encode_lines([texts[number - size] for number in lines]))
        if others:
            encoded = self._engine.encode_batch_fast(
                [texts[number - size] for number in others], add_special_tokens=False
            )
            rows = [encoding.ids for encoding in encoded]
            counts = np.array([len(row) for row in rows], np.int64)
            self._store(others, np.fromiter((id for row in rows for id in row), np.int32), counts)

    def _encode_lines(self, words: list[str]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Encode words of ASCII letters as lines of one text, three times as fast as one by one.

        A newline is a token by itself between such words, in every splitting that has a cut rule.
        """
        half = len(words) // 2
        texts = ["\n".join([*part, ""]) for part in (words[:half], words[half:])]
        encoded = self._engine.encode_batch_fast(texts, add_special_tokens=False)
        ids = np.concatenate([np.array(encoding.ids, np.int32) for encoding in encoded])
        ends = np.flatnonzero(ids == self._newline)
        return np.delete(ids, ends), np.diff(ends, prepend=-1) - 1

    def _store(self, numbers: list[int], ids: NDArray[np.int32], counts: NDArray[np.int64]) -> None:
        self._first = _room(self._first, numbers[-1] + 1)
        self._count = _room(self._count, numbers[-1] + 1)
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
        rows: list[NDArray[np.int32]] = []
        for block in as_blocks(texts):
            if self._table.size > _REMEMBERED or self._used > _REMEMBERED_IDS:
                self._forget()
            numbers, bounds = self._table.number(block)
            counts = self._count[numbers]
            ends = np.cumsum(counts)
            ids = self._gather(numbers, counts, ends)
            edges = np.concatenate(([0], ends))[bounds]
            rows.extend(ids[start:end].copy() for start, end in spans(edges))
        return rows

    def _gather(
        self, numbers: NDArray[np.int64], counts: NDArray[np.int64], ends: NDArray[np.int64]
    ) -> NDArray[np.int32]:
        total = int(ends[-1]) if len(ends) else 0
        places = np.arange(total) + np.repeat(self._first[numbers] - ends + counts, counts)
        return self._ids[places]


def _room(array: NDArray[Any], size: int) -> NDArray[Any]:
    """Return ``array``, at least ``size`` long, growing by doubling."""
    if size <= len(array):
        return array
    return np.concatenate((array, np.zeros(2 * size - len(array), array.dtype)))
