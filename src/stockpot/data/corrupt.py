"""Objectives: how rows of tokens become questions and answers.

An objective is a function from `Rows` to a `Batch`, with the room it leaves for documents. Causal, masked
tokens, sentence pairs, span corruption and prefix are the ones here; another is one more function. Every
draw comes from the row's own seed, so a row is corrupted alike in whatever batch it stands. No model is
known here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stockpot.data.batch import IGNORED, Batch
from stockpot.data.pack import Rows
from stockpot.errors import ConfigError, DataError, TokenizerError

if TYPE_CHECKING:
    from stockpot.text.tokenizer import Tokenizer

__all__ = [
    "Objective",
    "ObjectiveName",
    "causal",
    "masked",
    "objective",
    "prefix",
    "sentence_pairs",
    "sentinels",
    "span_mask",
    "spans",
]

Ints = NDArray[np.int64]
ObjectiveName = Literal["causal", "masked", "pairs", "span", "prefix"]
_SENTINEL = re.compile(r"<\|?extra_(?:id_)?(\d+)\|?>")


@dataclass(frozen=True)
class Objective:
    """How batches are made.

    Args:
        name: one word, for messages and saved states.
        make: turns rows into a batch.
        pad_id: fills what is left of a row.
        room: how many tokens of a document fit a row, given the context.
        alone: each row must be one piece of one document.
    """

    name: str
    make: Callable[[Rows], Batch]
    pad_id: int = 0
    room: Callable[[int], int] = lambda context: context
    alone: bool = False


def objective(name: ObjectiveName, tokenizer: Tokenizer, *, two_stacks: bool = False) -> Objective:
    """Make an objective by name, with its usual settings.

    Args:
        name: causal · masked · pairs · span · prefix.
        tokenizer: names the special tokens.
        two_stacks: for a model with an encoder and a decoder (span always is; prefix may be).
    """
    if name == "prefix":
        return prefix(tokenizer, two_stacks=two_stacks)
    makers: dict[str, Callable[[Tokenizer], Objective]]
    makers = {"causal": causal, "masked": masked, "pairs": sentence_pairs, "span": spans}
    if name not in makers:
        raise ConfigError(f"There is no objective {name!r}.", f"Known: {', '.join([*makers, 'prefix'])}.")
    return makers[name](tokenizer)


# --- one stack ---


def causal(tokenizer: Tokenizer | None = None) -> Objective:
    """Predict the next token."""

    def make(rows: Rows) -> Batch:
        return Batch(_tensor(rows.ids), _tensor(rows.labels), rows.attention_mask())

    return Objective("causal", make, _pad(tokenizer))


def masked(tokenizer: Tokenizer, *, rate: float = 0.15) -> Objective:
    """Recognise hidden tokens from both sides.

    Of each row's ordinary tokens ``rate`` are chosen (exactly, rounded, at least one); 80 % of these become
    the mask token, 10 % a random ordinary token, 10 % stay. Only they are labels.

    Source: Devlin et al. 2019, arXiv:1810.04805, section 3.1.
    """
    hide = _Hiding(tokenizer, rate)

    def make(rows: Rows) -> Batch:
        draws = [rows.rng(r) for r in range(len(rows.ids))]
        ids, labels = hide(rows.ids, rows.documents > 0, draws)
        return Batch(_tensor(ids), _tensor(labels), rows.attention_mask())

    return Objective("masked", make, _pad(tokenizer))


def sentence_pairs(tokenizer: Tokenizer, *, rate: float = 0.15) -> Objective:
    """Hide tokens, and tell whether the second part follows the first: ``[cls] A [sep] B [sep]``.

    A piece is cut after one of its sentences, at random. In half of the rows B is the rest of the piece
    (pair label 0), in the others as much text of another document (pair label 1).

    Source: Devlin et al. 2019, arXiv:1810.04805, section 3.1 and appendix A.2.
    """
    cls_id, sep_id = _special(tokenizer, "cls"), _special(tokenizer, "sep")
    hide = _Hiding(tokenizer, rate)
    pairs = _Pairing(tokenizer)
    pad_id = _pad(tokenizer)

    def make(rows: Rows) -> Batch:
        draws = [rows.rng(r) for r in range(len(rows.ids))]
        made = [pairs(rows, r, rng) for r, rng in enumerate(draws)]
        width = max(len(a) + len(b) for a, b, _ in made) + 3
        ids = np.full((len(made), width), pad_id, np.int64)
        segments = np.zeros_like(ids)
        real = np.zeros(ids.shape, np.bool_)
        for r, (a, b, _) in enumerate(made):
            row = np.concatenate([[cls_id], a, [sep_id], b, [sep_id]])
            ids[r, : len(row)] = row
            segments[r, len(a) + 2 : len(row)] = 1
            real[r, : len(row)] = True
        hidden, labels = hide(ids, real, draws)
        strangers = np.array([stranger for _, _, stranger in made], np.int64)
        mask, pair_labels = torch.from_numpy(real), _tensor(strangers)
        return Batch(
            _tensor(hidden), _tensor(labels), mask, segments=_tensor(segments), pair_labels=pair_labels
        )

    return Objective("pairs", make, pad_id, room=lambda context: _at_least(context - 3, context), alone=True)


def prefix(tokenizer: Tokenizer, *, two_stacks: bool = False) -> Objective:
    """Continue a beginning that is seen from both sides.

    The cut is random, or, where only a part of a record counts, just before that part (a prompt and its
    completion). One stack: segments are 0 in the beginning and 1 after it, and only what follows the
    beginning counts. Two stacks: the beginning is the source and the rest the target.

    Source: Raffel et al. 2020, arXiv:1910.10683, sections 3.2.1 and 3.2.3.
    """
    pad_id = _pad(tokenizer)
    if two_stacks:
        start = _start(tokenizer)

        def make_two(rows: Rows) -> Batch:
            parts = []
            for r in range(len(rows.ids)):
                ids = rows.piece(r)
                at = _cut_point(rows, r, 0, len(ids), rows.rng(r))
                parts.append((ids[:at], ids[at:]))
            return _two_stacks(parts, start, pad_id)

        return Objective("prefix-two-stacks", make_two, pad_id, alone=True)

    def make(rows: Rows) -> Batch:
        labels = rows.labels.copy()
        segments = np.ones_like(rows.ids)
        for r, pieces in enumerate(rows.pieces):
            rng, column = rows.rng(r), 0
            for _, first, stop in pieces:
                at = _cut_point(rows, r, column, stop - first, rng)
                segments[r, column : column + at] = 0
                labels[r, column : column + at - 1] = IGNORED
                column += stop - first
        return Batch(_tensor(rows.ids), _tensor(labels), rows.attention_mask(), segments=_tensor(segments))

    return Objective("prefix", make, pad_id)


def _cut_point(rows: Rows, row: int, column: int, length: int, rng: np.random.Generator) -> int:
    """How many of a piece's tokens are its beginning: at least one, and where possible not all."""
    if rows.store.counted is not None:
        counted = np.flatnonzero(rows.labels[row, column : column + length] != IGNORED)
        if len(counted):
            return int(counted[0]) + 1
    return int(rng.integers(1, max(2, length)))


# --- two stacks ---


def spans(tokenizer: Tokenizer, *, rate: float = 0.15, mean_span: float = 3.0) -> Objective:
    """Fill in missing spans, in a model with an encoder and a decoder.

    The source has a sentinel in the place of each span; the target lists each sentinel with its span, then
    one more sentinel and the end token. Begin and end tokens of documents are left out of the source.

    Raises:
        TokenizerError: if the tokenizer has no sentinels, or too few for the context.

    Source: Raffel et al. 2020, arXiv:1910.10683, section 3.1.4.
    """
    marks = sentinels(tokenizer)
    pad_id, start, end = _pad(tokenizer), _start(tokenizer), _special(tokenizer, "eos")

    def make(rows: Rows) -> Batch:
        parts = []
        for r in range(len(rows.ids)):
            ids = _bare(rows.piece(r), tokenizer)
            noise = span_mask(len(ids), rate, mean_span, rows.rng(r))
            parts.append((_with_sentinels(ids, noise, marks, end), _with_sentinels(ids, ~noise, marks, end)))
        return _two_stacks(parts, start, pad_id)

    def room(context: int) -> int:
        length = 2
        while _source_length(length + 1, rate, mean_span) <= context:
            length += 1
        needed = _span_count(length, rate, mean_span)[1] + 1
        if needed > len(marks):
            raise TokenizerError(
                f"Span corruption of {context} tokens needs {needed} sentinels; "
                f"the tokenizer has {len(marks)}.",
                _SENTINEL_HELP.format(count=needed),
            )
        return length

    return Objective("span", make, pad_id, room=room, alone=True)


_SENTINEL_HELP = (
    'Train it with special_tokens=(*SPECIAL_TOKENS, *(f"<|extra_{{i}}|>" for i in range({count}))), '
    "or choose another objective."
)


def sentinels(tokenizer: Tokenizer) -> Ints:
    """Find the tokens that stand for missing spans, in order: ``<|extra_0|>`` or ``<extra_id_0>``, and so on.

    Raises:
        TokenizerError: if there are none.
    """
    found = {
        int(match[1]): index
        for spelling, index in tokenizer.special_ids.items()
        if (match := _SENTINEL.fullmatch(spelling))
    }
    if not found:
        raise TokenizerError(
            "Span corruption needs sentinel tokens, and this tokenizer has none.",
            _SENTINEL_HELP.format(count=100),
        )
    return np.array([found[number] for number in sorted(found)], np.int64)


def span_mask(length: int, rate: float, mean_span: float, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Choose which tokens go missing: ``rate`` of them, in spans of ``mean_span`` on average.

    Kept and missing stretches alternate and begin with a kept one; each has at least one token.
    """
    if length < 2:
        return np.zeros(length, np.bool_)
    missing, count = _span_count(length, rate, mean_span)
    kept_lengths = _cut_randomly(length - missing, count, rng)
    span_lengths = _cut_randomly(missing, count, rng)
    lengths = np.stack([kept_lengths, span_lengths], axis=1).ravel()
    return np.repeat(np.arange(2 * count) % 2 == 1, lengths)


def _span_count(length: int, rate: float, mean_span: float) -> tuple[int, int]:
    missing = min(max(round(length * rate), 1), length - 1)
    return missing, min(max(round(missing / mean_span), 1), length - missing)


def _source_length(length: int, rate: float, mean_span: float) -> int:
    missing, count = _span_count(length, rate, mean_span)
    return max(length - missing + count + 1, missing + count + 2)


def _cut_randomly(total: int, count: int, rng: np.random.Generator) -> Ints:
    """Cut ``total`` into ``count`` positive parts, every way equally likely."""
    ends = np.empty(count + 1, np.int64)
    ends[0], ends[-1] = 0, total
    ends[1:-1] = np.sort(np.argsort(rng.random(total - 1))[: count - 1]) + 1
    return np.diff(ends)


def _with_sentinels(ids: Ints, gone: NDArray[np.bool_], marks: Ints, end: int) -> Ints:
    """Put one sentinel in the place of each run of ``gone`` tokens, and the end token after all.

    Called with the missing tokens it makes the source, with the kept ones the target: both have the same
    sentinels, since stretches alternate. The target, which begins with a kept stretch, ends with a sentinel
    of its own.
    """
    begins = gone & ~np.concatenate([[False], gone[:-1]])
    out = ids.copy()
    out[begins] = marks[: int(begins.sum())]
    out = out[begins | ~gone]
    closing = [marks[int(begins.sum())]] if len(gone) and gone[0] else []
    return np.concatenate([out, closing, [end]]).astype(np.int64)


def _two_stacks(parts: Sequence[tuple[Ints, Ints]], start: int, pad_id: int) -> Batch:
    """Pad sources and targets; the decoder reads ``start``, then the target one step behind its labels."""
    source, source_real = _padded([source for source, _ in parts], pad_id)
    labels, real = _padded([target for _, target in parts], IGNORED)
    ids = np.full_like(labels, pad_id)
    ids[:, 0] = start
    ids[:, 1:][real[:, 1:]] = labels[:, :-1][real[:, 1:]]
    masks = torch.from_numpy(real), torch.from_numpy(source_real)
    return Batch(_tensor(ids), _tensor(labels), masks[0], source=_tensor(source), source_mask=masks[1])


# --- parts ---


class _Hiding:
    """The 80/10/10 corruption of chosen tokens."""

    def __init__(self, tokenizer: Tokenizer, rate: float) -> None:
        if not 0 < rate < 1:
            raise ConfigError(f"The rate of hidden tokens must lie between 0 and 1, not {rate}.")
        self._mask_id = _special(tokenizer, "mask")
        self._rate = rate
        self._is_ordinary = np.ones(tokenizer.vocab_size, np.bool_)
        self._is_ordinary[list(tokenizer.special_ids.values())] = False
        self._ordinary = np.flatnonzero(self._is_ordinary)

    def __call__(
        self, ids: Ints, real: NDArray[np.bool_], draws: Sequence[np.random.Generator]
    ) -> tuple[Ints, Ints]:
        """Return hidden ids and labels; special tokens and padding are never touched."""
        uniform = np.zeros((3, *ids.shape))
        for r, rng in enumerate(draws):
            length = int(real[r].sum())
            uniform[:, r, :length] = rng.random((3, length))
        may = real & self._is_ordinary[ids]
        available = may.sum(axis=1)
        wanted = np.where(available > 0, np.maximum(1, np.rint(self._rate * available)), 0).astype(np.int64)
        keys = np.where(may, uniform[0], 2.0)
        limit = np.take_along_axis(np.sort(keys, axis=1), np.maximum(wanted - 1, 0)[:, None], axis=1)
        chosen = may & (keys <= limit) & (wanted > 0)[:, None]
        labels = np.where(chosen, ids, IGNORED)
        hidden = np.where(chosen & (uniform[1] < 0.8), self._mask_id, ids)
        random_ids = self._ordinary[(uniform[2] * len(self._ordinary)).astype(np.int64)]
        return np.where(chosen & (uniform[1] >= 0.9), random_ids, hidden), labels


class _Pairing:
    """Cut a piece after a sentence, or put another document's text after its first part."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        spelled = (tokenizer.decode([index]) for index in range(tokenizer.vocab_size))
        self._ends = np.array([text.rstrip(" \"'”’)").endswith((".", "!", "?", "\n")) for text in spelled])

    def __call__(self, rows: Rows, row: int, rng: np.random.Generator) -> tuple[Ints, Ints, bool]:
        """Return A, B and whether B is a stranger."""
        ids = _bare(rows.piece(row), self._tokenizer)
        ends = np.flatnonzero(self._ends[ids[:-1]]) + 1
        at = int(ends[rng.integers(len(ends))]) if len(ends) else (len(ids) + 1) // 2
        stranger = bool(rng.random() < 0.5) or at >= len(ids)
        second = self._other(rows, row, max(1, len(ids) - at), rng) if stranger else ids[at:]
        return ids[:at], second, stranger

    def _other(self, rows: Rows, row: int, length: int, rng: np.random.Generator) -> Ints:
        store, own = rows.store, rows.pieces[row][0][0]
        if store.documents < 2:
            raise DataError(
                "Sentence pairs need at least two documents.",
                'Give more files, or separate the documents of a text file with the setting "separator".',
            )
        document = int(rng.integers(store.documents - 1))
        document += document >= own
        size = int(store.lengths[document])
        start = int(rng.integers(max(1, size - length)))
        ids = _bare(store.read(document, start, start + 2 * length).astype(np.int64), self._tokenizer)
        ends = np.flatnonzero(self._ends[ids[:-length]]) + 1 if start else ids[:0]
        return ids[int(ends[0]) if len(ends) else 0 :][:length]


def _bare(ids: Ints, tokenizer: Tokenizer) -> Ints:
    """Leave out the tokens that begin and end a document."""
    first = len(ids) > 0 and ids[0] == tokenizer.bos_id
    last = len(ids) > first and ids[-1] == tokenizer.eos_id
    return ids[int(first) : len(ids) - int(last)]


def _padded(rows: Sequence[Ints], fill: int) -> tuple[Ints, NDArray[np.bool_]]:
    lengths = np.array([len(row) for row in rows])
    real = np.arange(max(1, int(lengths.max())))[None, :] < lengths[:, None]
    out = np.full(real.shape, fill, np.int64)
    out[real] = np.concatenate(rows)
    return out, real


def _tensor(array: Ints) -> Tensor:
    return torch.from_numpy(array)


def _pad(tokenizer: Tokenizer | None) -> int:
    if tokenizer is None:
        return 0
    return next((i for i in (tokenizer.pad_id, tokenizer.eos_id) if i is not None), 0)


def _start(tokenizer: Tokenizer) -> int:
    """Choose what a decoder reads first: the beginning token, or padding as T5 does."""
    found = next((i for i in (tokenizer.bos_id, tokenizer.pad_id) if i is not None), None)
    return _special(tokenizer, "bos") if found is None else found


def _special(tokenizer: Tokenizer, role: str) -> int:
    found: int | None = getattr(tokenizer, f"{role}_id")
    if found is None:
        raise TokenizerError(
            f"This objective needs the special token {role}, and the tokenizer has none.",
            f'Train it with special_tokens that include "<|{role}|>".',
        )
    return found


def _at_least(room: int, context: int) -> int:
    if room < 2:
        raise ConfigError(f"A context of {context} is too short for this objective.", "Choose a longer one.")
    return room
