"""Span corruption: stretches of text go missing, and an encoder-decoder fills them in.

Decides how many tokens go missing, where, and how source and target are written with sentinels. All rows of a
batch are made at once, each from its own random numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from stockpot.data.batch import Batch
from stockpot.data.objective import (
    Objective,
    Padded,
    bare,
    choose,
    pad_of,
    padded,
    sequence_to_sequence,
    special_of,
    start_of,
)
from stockpot.data.pack import Rows
from stockpot.errors import TokenizerError

if TYPE_CHECKING:
    from stockpot.text.tokenizer import Tokenizer

__all__ = ["sentinels", "span_masks", "spans"]

Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]
_SENTINEL_HELP = (
    "Train one with sentinels={count} (train-tokenizer --set sentinels={count}), or choose another objective."
)


def spans(tokenizer: Tokenizer, *, rate: float = 0.15, mean_span: float = 3.0) -> Objective:
    """Fill in missing spans, in a model with an encoder and a decoder.

    The source has a sentinel in the place of each span; the target lists each sentinel with its span, then
    one more sentinel and the end token. Begin and end tokens of documents are left out of the source.

    Raises:
        TokenizerError: if the tokenizer has no sentinels, or too few for the context.

    Source: Raffel et al. 2020, arXiv:1910.10683, section 3.1.4.
    """
    marks = sentinels(tokenizer)
    pad_id, start, end = pad_of(tokenizer), start_of(tokenizer), special_of(tokenizer, "eos")

    def make(rows: Rows) -> Batch:
        ids, real = padded([bare(rows.piece(r), tokenizer) for r in range(len(rows.ids))])
        gone = span_masks(real.sum(axis=1), rate, mean_span, [rows.rng(r) for r in range(len(ids))])
        source = _with_sentinels(ids, real, gone, marks, [end])
        target = _with_sentinels(ids, real, real & ~gone, marks, [None, end])
        return sequence_to_sequence(source, target, start, pad_id)

    def room(context: int) -> int:
        length = 2
        while _longest_side(length + 1, rate, mean_span) <= context:
            length += 1
        needed = int(_span_counts(np.array([length]), rate, mean_span)[1][0]) + 1
        if needed > len(marks):
            raise TokenizerError(
                f"Span corruption of {context} tokens needs {needed} sentinels; "
                f"the tokenizer has {len(marks)}.",
                _SENTINEL_HELP.format(count=needed),
            )
        return length

    return Objective("span", make, pad_id, room=room, alone=True)


def sentinels(tokenizer: Tokenizer) -> Ints:
    """Find the tokens that stand for missing spans, in order: ``<|extra_0|>`` or ``<extra_id_0>``, and so on.

    Raises:
        TokenizerError: if there are none.
    """
    found = tokenizer.sentinel_ids
    if not found:
        raise TokenizerError(
            "Span corruption needs sentinel tokens, and this tokenizer has none.",
            _SENTINEL_HELP.format(count=100),
        )
    return np.array(found, np.int64)


def span_masks(lengths: Ints, rate: float, mean_span: float, draws: Sequence[np.random.Generator]) -> Mask:
    """Choose which tokens go missing: ``rate`` of each row, in spans of ``mean_span`` tokens on average.

    Kept and missing stretches alternate and begin with a kept one; all ways to cut the row so are equally
    likely. Rows of one token or none stay whole.

    Shapes: lengths ``(rows,)``; the result ``(rows, longest)``.
    """
    rows, width = len(lengths), max(1, int(lengths.max()))
    uniform = np.zeros((rows, width))
    for row, rng in enumerate(draws):
        uniform[row, : lengths[row]] = rng.random(int(lengths[row]))
    missing, count = _span_counts(lengths, rate, mean_span)
    kept = (lengths - missing)[:, None]
    column = np.arange(width)[None, :]
    # The first ``kept`` columns stand for the kept tokens, the others for the missing ones. In both parts
    # count - 1 places are chosen where a new stretch begins.
    in_kept, in_missing = column < kept, (column >= kept) & (column < lengths[:, None])
    kept_sizes = _stretches(choose(uniform, in_kept & (column > 0), count - 1), in_kept, count)
    span_sizes = _stretches(choose(uniform, in_missing & (column > kept), count - 1), in_missing, count)
    ends = np.cumsum(kept_sizes + span_sizes, axis=1)
    change = np.zeros((rows, width + 1), np.int64)
    spans_at = np.nonzero(span_sizes)
    change[spans_at[0], (ends - span_sizes)[spans_at]] = 1
    change[spans_at[0], ends[spans_at]] = -1
    return np.cumsum(change, axis=1)[:, :width] > 0


def _stretches(begins: Mask, inside: Mask, count: Ints) -> Ints:
    """Count the tokens of each row's stretches; shape ``(rows, most stretches)``."""
    most = int(count.max())
    stretch = np.cumsum(begins, axis=1) + np.arange(len(begins))[:, None] * most
    return np.bincount(stretch[inside], minlength=len(begins) * most).reshape(-1, most)


def _span_counts(lengths: Ints, rate: float, mean_span: float) -> tuple[Ints, Ints]:
    """Say how many tokens of each row go missing, and in how many spans."""
    most = np.maximum(lengths - 1, 0)
    missing = np.minimum(np.maximum(np.rint(lengths * rate), 1), most).astype(np.int64)
    count = np.minimum(np.rint(missing / mean_span), lengths - missing)
    return missing, np.maximum(count, 1).astype(np.int64)


def _longest_side(length: int, rate: float, mean_span: float) -> int:
    """Say how long the longer of source and target gets."""
    missing, count = (int(n[0]) for n in _span_counts(np.array([length]), rate, mean_span))
    return max(length - missing + count + 1, missing + count + 2)


def _with_sentinels(ids: Ints, real: Mask, gone: Mask, marks: Ints, closing: Sequence[int | None]) -> Padded:
    """Put one sentinel in the place of each run of ``gone`` tokens, and ``closing`` after all (None: the next one).

    Called with the missing tokens it makes the source, with the kept ones the target: both have the same
    sentinels, since stretches alternate.
    """
    begins = gone.copy()
    begins[:, 1:] &= ~gone[:, :-1]
    number = np.cumsum(begins, axis=1)
    stays = real & (begins | ~gone)
    lengths = stays.sum(axis=1)
    out_real = np.arange(int(lengths.max()) + len(closing))[None, :] < (lengths + len(closing))[:, None]
    out = np.zeros(out_real.shape, np.int64)
    out[np.arange(out.shape[1])[None, :] < lengths[:, None]] = np.where(begins, marks[number - 1], ids)[stays]
    row = np.arange(len(ids))
    for place, token in enumerate(closing):
        out[row, lengths + place] = marks[number[:, -1]] if token is None else token
    return out, out_real
