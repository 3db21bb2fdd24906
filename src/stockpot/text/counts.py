"""Count the words of a stream of texts, once, in bounded memory.

What a word is, the engine's own pre-tokenizer decides; this file only avoids asking it about the same piece
twice. When distinct words pass a limit, the rarest are forgotten, so that an endless stream of ever new words
cannot fill the memory: the counts of what is kept may then be a little low, never high.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import compress

import numpy as np
from tokenizers import Tokenizer as Engine
from tokenizers.pre_tokenizers import PreTokenizer

from stockpot.text.pieces import (
    CUT_RULES,
    WORD_PATTERN,
    PieceTable,
    are_letters,
    as_blocks,
    ascii_words,
    parts,
    utf8,
)

__all__ = ["count_words"]

_ASCII_WORDS = ascii_words(WORD_PATTERN)
_LONGEST_WORD = 256  # longer runs without a cut are counted in parts: nobody wants them as tokens
_PIECES = 1 << 19
_PIECE_BYTES = 1 << 26


def count_words(texts: Iterable[str], *, max_words: int = 3_000_000) -> Counter[str]:
    """Count the words (in the sense of ``WORD_PATTERN``) of ``texts``, which is read once.

    Args:
        texts: any number of them; where one ends, a word ends.
        max_words: most distinct words held; about 150 bytes each.
    """
    counter = _Counter(max_words)
    rule = CUT_RULES[WORD_PATTERN]
    for block in as_blocks(part for text in texts for part in parts(utf8(text), rule)):
        counter.add(block)
    return counter.finish()


class _Counter:
    """Piece counts (cheap, per block) that are folded into word counts when many have gathered."""

    def __init__(self, max_words: int) -> None:
        self._max_words = max_words
        self._words: Counter[str] = Counter()
        self._table = PieceTable(CUT_RULES[WORD_PATTERN], self._admit)
        self._split = _word_splitter()
        self._reset()

    def _reset(self) -> None:
        self._pieces: list[bytes] = []
        self._held_bytes = 0
        self._counts = np.zeros(1 << 12, np.int64)
        self._table.clear()

    def _admit(self, pieces: list[bytes]) -> None:
        self._pieces.extend(pieces)
        self._held_bytes += sum(map(len, pieces))

    def add(self, block: list[bytes]) -> None:
        numbers, _ = self._table.number(block)
        seen = np.bincount(numbers)
        if len(seen) > len(self._counts):
            self._counts = np.concatenate((self._counts, np.zeros(2 * len(seen), np.int64)))
        self._counts[: len(seen)] += seen
        if len(self._pieces) > _PIECES or self._held_bytes > _PIECE_BYTES:
            self._fold()

    def finish(self) -> Counter[str]:
        self._fold()
        return self._words

    def _fold(self) -> None:
        if not self._pieces:
            return
        words, split = self._words, self._split
        counts = self._counts[: len(self._pieces)]
        is_word = are_letters(self._pieces, _LONGEST_WORD)
        plain = b"\n".join(compress(self._pieces, is_word)).decode().split("\n") if is_word.any() else []
        found_once = zip(plain, counts[is_word].tolist(), strict=True)  # no word is there twice
        dict.update(words, found_once if not words else ((w, words[w] + n) for w, n in found_once))
        for piece, count in zip(compress(self._pieces, ~is_word), counts[~is_word].tolist(), strict=True):
            if piece.isascii():
                found = [word.decode() for word in _ASCII_WORDS.findall(piece)]
            else:
                found = split(piece.decode())
            for word in found:
                for at in range(0, len(word), _LONGEST_WORD):
                    words[word[at : at + _LONGEST_WORD]] += count
        self._reset()
        self._forget_rare()

    def _forget_rare(self) -> None:
        count = 1
        while len(self._words) > self._max_words:
            for word in [word for word, seen in self._words.items() if seen <= count]:
                del self._words[word]
            count *= 2


def _word_splitter() -> Callable[[str], list[str]]:
    split = {"type": "Split", "pattern": {"Regex": WORD_PATTERN}, "behavior": "Isolated", "invert": False}
    pre_tokenizer: PreTokenizer = Engine.from_str(
        json.dumps({"version": "1.0", "added_tokens": [], "pre_tokenizer": split, "model": _NOTHING})
    ).pre_tokenizer
    return lambda text: [word for word, _ in pre_tokenizer.pre_tokenize_str(text)]


_NOTHING = {"type": "BPE", "vocab": {}, "merges": []}
