"""Cut documents into passages: at paragraphs, else at sentences, else at words, with at most so many tokens each.

The end of a passage is repeated at the beginning of the next within a part, so that what a cut separates can still be found.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from stockpot.prompt.documents import Part

__all__ = ["Passage", "cut"]

Count = Callable[[Sequence[str]], list[int]]
"""Texts to their numbers of tokens."""

_PARAGRAPH = re.compile(r"\n\s*\n")
_SENTENCE = re.compile(r"(?<=[.!?…])[\"')\]]*\s+(?=[\"'(\[]?[A-ZÀ-Þ0-9])|\n")


@dataclass(frozen=True)
class Passage:
    """What is stored, found and shown."""

    text: str
    title: str = ""
    place: str = ""


def cut(parts: Sequence[Part], count: Count, *, tokens: int = 224, overlap: int = 32) -> list[Passage]:
    """Cut parts into passages of at most ``tokens`` tokens, a part's title not counted.

    Args:
        parts: of one document; no passage reaches over two.
        count: texts to their numbers of tokens.
        tokens: most of a passage.
        overlap: about how many are repeated from the passage before.
    """
    if not 0 <= overlap < tokens:
        raise ValueError(f"an overlap of {overlap} does not fit passages of {tokens} tokens")
    whole = count([part.text for part in parts]) if parts else []
    passages = []
    for part, size in zip(parts, whole, strict=True):
        if not part.text.strip():
            continue
        texts = (
            [" ".join(part.text.split())] if size <= tokens else _packed(part.text, count, tokens, overlap)
        )
        passages += [Passage(text, part.title, part.place) for text in texts]
    return passages


def _packed(text: str, count: Count, tokens: int, overlap: int) -> Iterator[str]:
    pieces = [" ".join(piece.split()) for piece in _pieces(text, count, tokens)]
    sizes = count([f" {piece}" for piece in pieces])  # with the space that joins it to the one before
    held: list[int] = []
    for index, size in enumerate(sizes):
        if held and sum(sizes[i] for i in held) + size > tokens:
            yield " ".join(pieces[i] for i in held)
            kept: list[int] = []
            while held and sum(sizes[i] for i in kept) + sizes[held[-1]] <= min(overlap, tokens - size):
                kept.insert(0, held.pop())
            held = kept
        held.append(index)
    if held:
        yield " ".join(pieces[i] for i in held)


def _pieces(text: str, count: Count, tokens: int) -> Iterator[str]:
    """Give paragraphs' sentences, and of a sentence that is too long runs of words."""
    sentences = [
        sentence
        for paragraph in _PARAGRAPH.split(text)
        for sentence in _SENTENCE.split(paragraph)
        if sentence and sentence.strip()
    ]
    yield from _small(sentences, count, tokens)


def _small(texts: Sequence[str], count: Count, tokens: int) -> Iterator[str]:
    """Cut texts that are too long, and what is still too long again, since words differ in length."""
    for text, size in zip(texts, count(texts), strict=True):
        if size <= tokens or len(text) == 1:
            yield text
        else:
            yield from _small(_runs(text, size, tokens), count, tokens)


def _runs(text: str, size: int, tokens: int) -> list[str]:
    words = text.split()
    if len(words) < 2:  # one endless word, such as encoded data
        step = max(1, len(text) * tokens // (2 * size) - 1)
        return [text[i : i + step] for i in range(0, len(text), step)]
    step = max(1, len(words) * tokens // (2 * size))
    return [" ".join(words[i : i + step]) for i in range(0, len(words), step)]
