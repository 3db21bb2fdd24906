"""Objectives: how rows of tokens become questions and answers.

An objective is a function from `Rows` to a `Batch`, with the room it leaves for documents. Causal, masked
tokens, sentence pairs, span corruption and prefix are the ones here; another is one more function. Every
draw comes from the row's own seed, so a row is corrupted alike in whatever batch it stands. No model is
known here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from stockpot.data.batch import IGNORED, Batch
from stockpot.data.objective import (
    Objective,
    bare,
    choose,
    pad_of,
    padded,
    sequence_to_sequence,
    special_of,
    start_of,
    tensor,
)
from stockpot.data.pack import Rows
from stockpot.data.spans import spans
from stockpot.errors import ConfigError, DataError

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
    "spans",
]

Ints = NDArray[np.int64]
ObjectiveName = Literal["causal", "masked", "pairs", "span", "prefix"]


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
        return Batch(tensor(rows.ids), tensor(rows.labels), rows.attention_mask())

    return Objective("causal", make, pad_of(tokenizer))


def masked(tokenizer: Tokenizer, *, rate: float = 0.15) -> Objective:
    """Recognise hidden tokens from both sides.

    Of each row's ordinary tokens ``rate`` are chosen (exactly, rounded, at least one); 80 % of these become
    the mask token, 10 % a random ordinary token, 10 % stay. Only they are labels. A document stands between
    ``[cls]`` and ``[sep]`` where the tokenizer has them, as it does when the encoder is used.

    Source: Devlin et al. 2019, arXiv:1810.04805, section 3.1.
    """
    hide = _Hiding(tokenizer, rate)
    frame = [
        (old, new)
        for old, new in ((tokenizer.bos_id, tokenizer.cls_id), (tokenizer.eos_id, tokenizer.sep_id))
        if old is not None and new is not None
    ]

    def make(rows: Rows) -> Batch:
        draws = [rows.rng(r) for r in range(len(rows.ids))]
        framed = rows.ids.copy()
        for old, new in frame:
            framed[rows.ids == old] = new
        ids, labels = hide(framed, rows.documents > 0, draws)
        return Batch(tensor(ids), tensor(labels), rows.attention_mask())

    return Objective("masked", make, pad_of(tokenizer))


def sentence_pairs(tokenizer: Tokenizer, *, rate: float = 0.15) -> Objective:
    """Hide tokens, and tell whether the second part follows the first: ``[cls] A [sep] B [sep]``.

    A piece is cut after one of its sentences, at random. In half of the rows B is the rest of the piece
    (pair label 0), in the others as much text of another document (pair label 1).

    Source: Devlin et al. 2019, arXiv:1810.04805, section 3.1 and appendix A.2.
    """
    cls_id, sep_id = special_of(tokenizer, "cls"), special_of(tokenizer, "sep")
    hide = _Hiding(tokenizer, rate)
    pairs = _Pairing(tokenizer)
    pad_id = pad_of(tokenizer)

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
        mask, pair_labels = torch.from_numpy(real), tensor(strangers)
        return Batch(tensor(hidden), tensor(labels), mask, segments=tensor(segments), pair_labels=pair_labels)

    return Objective("pairs", make, pad_id, room=_room_of_a_pair, alone=True)


def _room_of_a_pair(context: int) -> int:
    if context < 5:
        raise ConfigError(f"A context of {context} is too short for this objective.", "Choose a longer one.")
    return context - 3


def prefix(tokenizer: Tokenizer, *, two_stacks: bool = False) -> Objective:
    """Continue a beginning that is seen from both sides.

    The cut is random, or, where only a part of a record counts, just before that part (a prompt and its
    completion). One stack: segments are 0 in the beginning and 1 after it, and only what follows the
    beginning counts. Two stacks: the beginning is the source and the rest the target. Of a conversation of several
    turns the decoder reads all that follows the first question, and only answers count.

    Source: Raffel et al. 2020, arXiv:1910.10683, sections 3.2.1 and 3.2.3.
    """
    pad_id = pad_of(tokenizer)
    if two_stacks:
        start = start_of(tokenizer)

        def make_two(rows: Rows) -> Batch:
            sources, targets, labels = [], [], []
            for r in range(len(rows.ids)):
                ids = rows.piece(r)
                at = _cut_point(rows, r, 0, len(ids), rows.rng(r))
                sources.append(ids[:at])
                targets.append(ids[at:])
                labels.append(rows.labels[r, at - 1 : len(ids) - 1])
            return sequence_to_sequence(padded(sources), padded(targets), start, pad_id, padded(labels)[0])

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
        return Batch(tensor(rows.ids), tensor(labels), rows.attention_mask(), segments=tensor(segments))

    return Objective("prefix", make, pad_id)


def _cut_point(rows: Rows, row: int, column: int, length: int, rng: np.random.Generator) -> int:
    """How many of a piece's tokens are its beginning: at least one, and where possible not all."""
    if rows.store.counted is not None:
        counted = np.flatnonzero(rows.labels[row, column : column + length] != IGNORED)
        if len(counted):
            return int(counted[0]) + 1
    return int(rng.integers(1, max(2, length)))


# --- parts ---


class _Hiding:
    """The 80/10/10 corruption of chosen tokens."""

    def __init__(self, tokenizer: Tokenizer, rate: float) -> None:
        if not 0 < rate < 1:
            raise ConfigError(f"The rate of hidden tokens must lie between 0 and 1, not {rate}.")
        self._mask_id = special_of(tokenizer, "mask")
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
        chosen = choose(uniform[0], may, wanted)
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
        ids = bare(rows.piece(row), self._tokenizer)
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
        ids = bare(store.read(document, start, start + 2 * length).astype(np.int64), self._tokenizer)
        ends = np.flatnonzero(self._ends[ids[:-length]]) + 1 if start else ids[:0]
        return ids[int(ends[0]) if len(ends) else 0 :][:length]
