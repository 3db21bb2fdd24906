"""Where text may be cut, and a table that remembers what each cut piece became.

Natural text repeats its words. A tokenizer that cuts text into words first (all of ours do) gives a word the
same ids wherever it stands, so a corpus needs the engine once per *distinct* piece; the rest is looking up,
done here with numpy on whole blocks of bytes. The same table counts pieces for training.

This file decides at which bytes a cut is certain whatever stands further left or right. It does not split
text the way a tokenizer does (the engine does that, inside a piece), so a missing cut costs time and never
changes an id.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from stockpot.errors import TokenizerError

__all__ = [
    "CUT_RULES",
    "GPT2_PATTERN",
    "LLAMA3_PATTERN",
    "WORD_PATTERN",
    "CutRule",
    "PieceTable",
    "are_letters",
    "as_blocks",
    "ascii_words",
    "parts",
    "utf8",
]

_LETTERS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

WORD_PATTERN = rf"{_LETTERS}|\p{{N}}|{_REST}"
"""How all our kinds but ``char`` and ``byte`` find words: Qwen2's pattern, ``qwen2`` to llama.cpp. A space belongs
to the word after it, every digit stands alone."""
LLAMA3_PATTERN = rf"{_LETTERS}|\p{{N}}{{1,3}}|{_REST}"
GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def ascii_words(pattern: str) -> re.Pattern[bytes]:
    """Return one of the patterns above as it reads where every character is ASCII.

    There Python and the engine agree on what a letter is.
    """
    for name, range in (("L", "A-Za-z"), ("N", "0-9")):
        inside = re.compile(rf"\\p\{{{name}\}}(?=[\\\]])")  # in a class another class or its end follows
        pattern = inside.sub(range, pattern).replace(rf"\p{{{name}}}", f"[{range}]")
    return re.compile(pattern.encode())


# Classes of a byte. Above ASCII a byte says nothing by itself, so cuts beside one are taken only before a
# space.
_LETTER, _DIGIT, _SPACE, _NEWLINE, _BLANK, _MARK, _OTHER = range(7)

BLOCK_BYTES = 1 << 18
_PART_BYTES = 1 << 20
_SHORT = 15  # a piece of at most 15 bytes is its own key: 15 bytes and its length in two 64-bit words
_LONGEST_KEPT = 256


def _byte_classes() -> bytes:
    classes = bytearray([_MARK]) * 128 + bytearray([_OTHER]) * 128
    for byte in range(128):
        letter = chr(byte)
        if letter.isalpha():
            classes[byte] = _LETTER
        elif letter.isdigit():
            classes[byte] = _DIGIT
        elif (
            letter in "\t\v\f" or 0x1C <= byte <= 0x1F
        ):  # the latter: blank to some engines, so never certain
            classes[byte] = _BLANK
    classes[ord(" ")] = _SPACE
    classes[ord("\n")] = classes[ord("\r")] = _NEWLINE
    return bytes(classes)


_CLASSES = _byte_classes()

CutRule = bytes
"""For each pair of byte classes, ``8 * left + right``: 1 if text may always be cut between them."""


def _rule(pairs: Iterable[tuple[int, int]]) -> CutRule:
    table = bytearray(256)
    for left, right in pairs:
        table[8 * left + right] = 1
    return bytes(table)


_ASCII = (_LETTER, _DIGIT, _SPACE, _NEWLINE, _BLANK, _MARK)
# Why each cut is certain, for the three patterns: no alternative of theirs
# * goes on after a letter with an ASCII byte that is no letter, nor after a digit with one that is no digit;
_AFTER_WORD = [(_LETTER, right) for right in _ASCII if right != _LETTER] + [
    (_DIGIT, right) for right in _ASCII if right != _DIGIT
]
# * has a space anywhere but in front, unless in a run of blanks.
_BEFORE_SPACE = [(left, _SPACE) for left in (_LETTER, _DIGIT, _MARK)]
# In the first two, a newline ends its token unless another blank follows, and nothing precedes a digit in its
# token.
_AFTER_NEWLINE = [(_NEWLINE, right) for right in (_LETTER, _DIGIT, _MARK)]
_BEFORE_DIGIT = [(_MARK, _DIGIT)]

CUT_RULES: dict[str, CutRule] = {
    WORD_PATTERN: _rule(_AFTER_WORD + _BEFORE_SPACE + _AFTER_NEWLINE + _BEFORE_DIGIT + [(_DIGIT, _DIGIT)]),
    LLAMA3_PATTERN: _rule(_AFTER_WORD + _BEFORE_SPACE + _AFTER_NEWLINE + _BEFORE_DIGIT),
    GPT2_PATTERN: _rule(_AFTER_WORD + _BEFORE_SPACE),
}

# A blank beyond ASCII ends in two bytes whose first is one of these (U+0085, A0, 1680, 2000-200A, 2028, 2029,
# 202F, 205F, 3000). Before a space we cut after any other character.
_BLANK_ENDING = bytes(byte in (0xC2, 0x9A, 0x80, 0x81) for byte in range(256))


def utf8(text: str) -> bytes:
    """Encode ``text``.

    Raises:
        TokenizerError: if it holds a lone surrogate, which is no character and has no UTF-8 form.
    """
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise TokenizerError(
            f"Text holds a lone surrogate (U+{ord(text[error.start]):04X}) at position {error.start}: "
            "that is no character.",
            'Clean it first, for example with text.encode("utf-8", "replace").decode().',
        ) from None


def as_blocks(texts: Iterable[bytes], size: int | None = None) -> Iterator[list[bytes]]:
    """Group texts, in order, into lists of about ``size`` bytes (``BLOCK_BYTES`` if None)."""
    size = BLOCK_BYTES if size is None else size
    block: list[bytes] = []
    held = 0
    for text in texts:
        block.append(text)
        held += len(text)
        if held >= size:
            yield block
            block, held = [], 0
    if block:
        yield block


def parts(text: bytes, rule: CutRule) -> Iterator[bytes]:
    """Cut a long text where it may be cut, so that no part needs much memory; a short one stays whole."""
    start, reach = 0, _PART_BYTES
    while len(text) - start > 2 * _PART_BYTES:
        window = text[start + reach : start + 2 * reach]
        cuts = cut_starts(window, rule, np.zeros(0, np.int64))
        if len(cuts) > 1:
            end = start + reach + int(cuts[1])
            yield text[start:end]
            start, reach = end, _PART_BYTES
        elif start + 2 * reach >= len(text):
            break
        else:
            reach *= 2
    yield text[start:]


def cut_starts(data: bytes, rule: CutRule, forced: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return where pieces begin, ascending: 0, every certain cut, and ``forced`` (in 1 … len - 1)."""
    classes = np.frombuffer(data.translate(_CLASSES), np.uint8)
    pairs = classes[:-1] * np.uint8(8) + classes[1:]
    cuts = np.frombuffer(
        bytearray(pairs.tobytes().translate(rule)), np.bool_
    )  # found 6 times as fast as bytes
    if not data.isascii() and len(data) > 2:
        after_other = pairs[1:] == 8 * _OTHER + _SPACE
        blank = np.frombuffer(data.translate(_BLANK_ENDING), np.uint8)[:-2]
        cuts[1:] |= after_other & (blank == 0)
    cuts[forced - 1] = True
    return np.concatenate(([0], np.flatnonzero(cuts) + 1)) if data else np.zeros(0, np.int64)


_ASCII_LETTERS = b" ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


def are_letters(pieces: Sequence[bytes], longest: int, known: bytes = _ASCII_LETTERS) -> NDArray[np.bool_]:
    """Say of each piece whether it is nothing but ASCII letters after at most one space: one word to every rule.

    Args:
        pieces: none of them empty.
        longest: most bytes.
        known: which letters count, and whether the space does.
    """
    lengths = np.fromiter(map(len, pieces), np.int64, len(pieces))
    starts = np.cumsum(lengths) - lengths
    data = b"".join(pieces)
    is_odd = bytes(byte not in known or byte not in _ASCII_LETTERS[1:] for byte in range(256))
    odd = np.add.reduceat(np.frombuffer(data.translate(is_odd), np.uint8), starts, dtype=np.int64)
    if b" " in known:
        odd -= np.frombuffer(data, np.uint8)[starts] == ord(" ")
    is_word: NDArray[np.bool_] = (odd == 0) & (lengths <= longest)
    return is_word


class PieceTable:
    """Number the distinct pieces of text, block by block.

    Args:
        rule: where text may be cut.
        admit: called with the pieces seen for the first time, in the order of their new numbers.
        capacity: most pieces kept; when it is passed, :meth:`clear` runs before the next block.
    """

    def __init__(
        self, rule: CutRule, admit: Callable[[list[bytes]], None], *, capacity: int = 1 << 20
    ) -> None:
        self.rule = rule
        self.capacity = capacity
        self._admit = admit
        self.clear()

    def clear(self) -> None:
        """Forget every piece."""
        self.size = 0
        self._long: dict[bytes, int] = {}
        self._slots = np.full(1 << 12, -1, np.int32)  # hash → number of a short piece
        self._low = np.zeros(
            1 << 12, np.uint64
        )  # its key, by number: frequent pieces, met early, lie together
        self._high = np.zeros(1 << 12, np.uint64)

    def number(self, texts: Sequence[bytes]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the numbers of all pieces, and where each text begins among them (and the last ends)."""
        joined = b"".join(texts)
        offsets = np.cumsum([0, *map(len, texts)])
        inner = offsets[(offsets > 0) & (offsets < len(joined))]
        starts = cut_starts(joined, self.rule, inner)
        numbers = self._look_up(joined, starts)
        return numbers, np.searchsorted(starts, offsets)

    def _look_up(self, data: bytes, starts: NDArray[np.int64]) -> NDArray[np.int64]:
        lengths = np.diff(starts, append=len(data))
        low, high = _keys(data, starts, lengths)
        numbers = self._find(low, high)
        unknown = np.flatnonzero(numbers < 0)
        if len(unknown):
            is_short = lengths[unknown] <= _SHORT
            short, long = unknown[is_short], unknown[~is_short]
            if len(short):
                numbers[short] = self._add_short(data, starts, lengths, low, high, short)
            if len(long):
                numbers[long] = self._number_long(data, starts[long].tolist(), lengths[long].tolist())
        return numbers

    def _find(self, low: NDArray[np.uint64], high: NDArray[np.uint64]) -> NDArray[np.int64]:
        slot = self._home(low, high)
        numbers = self._slots.take(slot)
        pending = np.flatnonzero(~self._is(numbers, low, high) & (numbers >= 0))
        while len(pending):  # another piece sits there: look in the next slot
            slot[pending] = (slot[pending] + 1) & (len(self._slots) - 1)
            found = self._slots[slot[pending]]
            numbers[pending] = found
            pending = pending[~self._is(found, low[pending], high[pending]) & (found >= 0)]
        return numbers.astype(np.int64)

    def _is(
        self, numbers: NDArray[np.int32], low: NDArray[np.uint64], high: NDArray[np.uint64]
    ) -> NDArray[np.bool_]:
        same: NDArray[np.bool_] = self._low.take(numbers) == low  # -1 takes the last, which is no piece's
        same &= self._high.take(numbers) == high
        return same

    def _home(self, low: NDArray[np.uint64], high: NDArray[np.uint64]) -> NDArray[np.int64]:
        mixed = _mixed(low, high)
        mixed >>= np.uint64(65 - len(self._slots).bit_length())
        return mixed.view(np.int64)

    def _add_short(
        self,
        data: bytes,
        starts: NDArray[np.int64],
        lengths: NDArray[np.int64],
        low: NDArray[np.uint64],
        high: NDArray[np.uint64],
        unknown: NDArray[np.int64],
    ) -> NDArray[np.int64]:
        low, high = low[unknown], high[unknown]
        order = np.argsort(_mixed(low, high))  # brings the same pieces side by side
        low, high = low[order], high[order]
        is_first = np.ones(len(order), np.bool_)
        is_first[1:] = (low[1:] != low[:-1]) | (high[1:] != high[:-1])
        chosen = unknown[order[is_first]]
        self._admit(
            [data[s : s + n] for s, n in zip(starts[chosen].tolist(), lengths[chosen].tolist(), strict=True)]
        )
        numbers = np.empty(len(order), np.int64)
        numbers[order] = self._insert(low[is_first], high[is_first])[np.cumsum(is_first) - 1]
        return numbers

    def _insert(self, low: NDArray[np.uint64], high: NDArray[np.uint64]) -> NDArray[np.int64]:
        numbers = np.arange(self.size, self.size + len(low))
        self.size += len(low)
        if self.size >= len(self._low):
            more = np.zeros(2 * self.size - len(self._low), np.uint64)
            self._low, self._high = np.concatenate((self._low, more)), np.concatenate((self._high, more))
        self._low[numbers], self._high[numbers] = low, high
        if 4 * self.size > len(self._slots):
            self._slots = np.full(1 << (4 * self.size).bit_length() + 1, -1, np.int32)
            self._place(np.flatnonzero(self._high[: self.size]))
        else:
            self._place(numbers)
        return numbers

    def _place(self, numbers: NDArray[np.int64]) -> None:
        slot = self._home(self._low[numbers], self._high[numbers])
        pending = np.arange(len(numbers))
        while len(pending):
            free = pending[self._slots[slot[pending]] < 0]
            self._slots[slot[free]] = numbers[free]  # of several for one slot, one stays
            pending = pending[self._slots[slot[pending]] != numbers[pending]]
            slot[pending] = (slot[pending] + 1) & (len(self._slots) - 1)

    def _number_long(self, data: bytes, starts: list[int], lengths: list[int]) -> list[int]:
        pieces = [data[start : start + length] for start, length in zip(starts, lengths, strict=True)]
        new = dict.fromkeys(piece for piece in pieces if piece not in self._long)
        numbers = dict(zip(new, range(self.size, self.size + len(new)), strict=True))
        if new:
            self._admit(list(new))
            self.size += len(new)
        known = self._long
        found = [numbers[piece] if piece in numbers else known[piece] for piece in pieces]
        known.update((piece, number) for piece, number in numbers.items() if len(piece) <= _LONGEST_KEPT)
        return found


def _mixed(low: NDArray[np.uint64], high: NDArray[np.uint64]) -> NDArray[np.uint64]:
    mixed = high * np.uint64(0x9E3779B97F4A7C15)
    mixed ^= low
    mixed *= np.uint64(0xD6E8FEB86659FD93)
    mixed ^= mixed >> np.uint64(32)
    mixed *= np.uint64(0xD6E8FEB86659FD93)
    return mixed


_KEEP = np.array([(1 << 8 * n) - 1 for n in range(9)], np.uint64)  # the first n bytes of a little-endian word


def _keys(
    data: bytes, starts: NDArray[np.int64], lengths: NDArray[np.int64]
) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Return two words per piece, unlike any other's of at most 15 bytes: its bytes and its length."""
    padded = data + bytes(16)
    words = np.ndarray((len(data) + 9,), "<u8", padded, strides=(1,))
    low = words.take(starts)  # quicker than words[starts]
    low &= _KEEP.take(np.minimum(lengths, 8))
    high = words.take(starts + 8)
    high &= _KEEP.take(np.clip(lengths - 8, 0, 7))
    high |= np.minimum(lengths, 255).astype(np.uint64) << np.uint64(56)
    return low, high


def spans(bounds: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Yield the (start, end) pairs between neighbouring ``bounds``."""
    return pairwise(bounds.tolist())
