"""Explain tokenizers: byte-pair encoding one merge at a time, and kinds compared on the same text.

The reading copy of what the engine does fast; a test proves both equal. Nothing else uses it to encode.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stockpot.errors import TokenizerError
from stockpot.text.kinds import KINDS
from stockpot.text.tokenizer import Tokenizer

__all__ = ["Merge", "Trace", "compare", "compare_tokenizers", "encode_by_hand", "trace_merges", "with_typos"]


@dataclass(frozen=True)
class Merge:
    """One step: two neighbours become one token.

    Attributes:
        rank: place of the merge in the order of learning, from 0; the lowest goes first.
        tokens: the word after the step.
    """

    left: str
    right: str
    rank: int
    tokens: tuple[str, ...]


@dataclass(frozen=True)
class Trace:
    """How one word is built: the characters it starts from, and the merges in the order they are applied."""

    characters: tuple[str, ...]
    merges: tuple[Merge, ...]

    @property
    def tokens(self) -> tuple[str, ...]:
        """The tokens in the end."""
        return self.merges[-1].tokens if self.merges else self.characters

    def __str__(self) -> str:
        steps = [(f"merge {m.rank}", f"{m.left} + {m.right}", " ".join(m.tokens)) for m in self.merges]
        rows = [("", "", " ".join(self.characters)), *steps]
        widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
        return "\n".join(f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c}".strip() for a, b, c in rows)


def trace_merges(tokenizer: Tokenizer, text: str) -> list[Trace]:
    """Return how each word of ``text`` is built, merge by merge.

    Raises:
        TokenizerError: if the tokenizer has no merges.
    """
    if tokenizer.kind not in {"bpe", "byte-bpe"}:
        raise TokenizerError(f'A tokenizer of kind "{tokenizer.kind}" has no merges.', "Use bpe or byte-bpe.")
    ranks = {pair: rank for rank, pair in reversed(list(enumerate(tokenizer.merges)))}
    return [_trace(word, ranks) for word in tokenizer.split(text)]


def _trace(word: str, ranks: Mapping[tuple[str, str], int]) -> Trace:
    tokens = list(word)
    merges: list[Merge] = []
    while True:
        pairs = [(ranks[pair], at) for at, pair in enumerate(pairwise(tokens)) if pair in ranks]
        if not pairs:
            return Trace(tuple(word), tuple(merges))
        rank, at = min(pairs)  # the merge learned first; of several places, the leftmost
        left, right = tokens[at : at + 2]
        tokens[at : at + 2] = [left + right]
        merges.append(Merge(left, right, rank, tuple(tokens)))


def encode_by_hand(tokenizer: Tokenizer, text: str) -> list[int]:
    """Return the ids of ``text`` by applying merges one by one: what :meth:`Tokenizer.encode` does, slowly."""
    ids: list[int] = []
    for trace in trace_merges(tokenizer, text):
        for token in trace.tokens:
            number = tokenizer.token_to_id(token)
            if number is None:
                number = tokenizer.unk_id
            if number is not None:
                ids.append(number)
    return ids


_LONGER_WORD = re.compile(r"[^\W\d_]{4,}")
_TYPOS = ("double", "drop", "swap", "replace")


def with_typos(texts: Iterable[str], *, share: float = 0.1, seed: int = 0) -> list[str]:
    """Misspell a share of the longer words: a letter doubled, dropped, swapped with the next, or replaced.

    Args:
        texts: any number of them.
        share: of words of at least four letters, in [0, 1].
        seed: the same seed misspells the same way.
    """
    choose = random.Random(seed)

    def spell(found: re.Match[str]) -> str:
        word = found[0]
        if choose.random() >= share:
            return word
        at, kind = choose.randrange(1, len(word) - 1), choose.choice(_TYPOS)
        changed = {
            "double": word[at] * 2 + word[at + 1 :],
            "drop": word[at + 1 :],
            "swap": word[at + 1] + word[at] + word[at + 2 :],
            "replace": choose.choice("abcdefghijklmnopqrstuvwxyz") + word[at + 1 :],
        }
        return word[:at] + changed[kind]

    return [_LONGER_WORD.sub(spell, text) for text in texts]


def compare(tokenizers: Mapping[str, Tokenizer], held_out: Sequence[str]) -> list[dict[str, Any]]:
    """Measure finished tokenizers on text none of them has seen.

    Returns:
        one row per tokenizer: ``tokenizer``, ``vocab_size``, ``unknown`` and ``unknown_with_typos`` (share of tokens that
        are the unknown token, without and with every tenth longer word misspelled), ``bytes_per_token``,
        ``tokens_per_word`` (words as blanks separate them), ``round_trip`` (share of texts that decoding gives back
        exactly) and ``mb_per_s`` (encoding, 10^6 UTF-8 bytes, cold).
    """
    misspelled = with_typos(held_out)
    size = sum(len(text.encode()) for text in held_out)
    words = sum(len(text.split()) for text in held_out)
    if not size:
        raise TokenizerError("There is no held-out text to compare on.", "Give a corpus with more documents.")
    rows = []
    for name, tokenizer in tokenizers.items():
        start = time.perf_counter()
        encoded = tokenizer.encode_batch(held_out)
        seconds = time.perf_counter() - start
        tokens = sum(map(len, encoded))
        same = sum(tokenizer.decode(ids) == text for ids, text in zip(encoded, held_out, strict=True))
        rows.append(
            {
                "tokenizer": name,
                "vocab_size": tokenizer.vocab_size,
                "unknown": round(_unknown(tokenizer, encoded), 5),
                "unknown_with_typos": round(_unknown(tokenizer, tokenizer.encode_batch(misspelled)), 5),
                "bytes_per_token": round(size / max(tokens, 1), 2),
                "tokens_per_word": round(tokens / max(words, 1), 2),
                "round_trip": round(same / len(held_out), 3),
                "mb_per_s": round(size / 1e6 / max(seconds, 1e-9), 1),
            }
        )
    return rows


def _unknown(tokenizer: Tokenizer, encoded: Sequence[NDArray[np.int32]]) -> float:
    if tokenizer.unk_id is None:
        return 0.0
    return sum(int((ids == tokenizer.unk_id).sum()) for ids in encoded) / max(sum(map(len, encoded)), 1)


def compare_tokenizers(
    texts: Sequence[str],
    *,
    held_out: Sequence[str],
    kinds: Sequence[str] = tuple(KINDS),
    vocab_size: int = 8192,
) -> list[dict[str, Any]]:
    """Train one tokenizer of each kind on ``texts`` and :func:`compare` them on ``held_out``.

    The ``char`` kind takes what it needs of the vocabulary, ``byte`` always 256 and the special tokens.
    """
    made = {kind: Tokenizer.train(texts, kind=kind, vocab_size=vocab_size) for kind in kinds}
    return compare(made, held_out)
