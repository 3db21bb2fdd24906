"""From records to ids, and which of them count.

The one place that decides what a document looks like to a model: a beginning and an end token around a text,
the chat template around a conversation, and loss on what the assistant (or the completion) says. Text never
turns into control tokens here. It decides no rows, no order and no objective.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from stockpot.data.reading import ReadReport
from stockpot.data.records import (
    ChatRecord,
    CompletionRecord,
    PreferenceRecord,
    Prompt,
    Record,
    TextRecord,
    as_messages,
)
from stockpot.data.store import StoreBuilder, TokenStore
from stockpot.errors import DataError
from stockpot.text.chat import Message

if TYPE_CHECKING:
    from stockpot.text.chat import ChatTemplate
    from stockpot.text.tokenizer import Tokenizer

__all__ = ["Encoded", "Overlong", "encode", "encode_preference", "encode_record", "encode_texts"]

Overlong = Literal["split", "cut", "drop"]
_BATCH_CHARS = 1 << 20
_BATCH_TEXTS = 4096
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """One document: ids ``(seq,)`` int32, and which of them count as targets, ``(seq,)`` bool."""

    ids: NDArray[np.int32]
    counted: NDArray[np.bool_]


def encode_texts(texts: Iterable[str], tokenizer: Tokenizer) -> Iterator[NDArray[np.int32]]:
    """Encode documents in batches of about a megabyte; each gets its beginning and end token.

    Texts without a single token are left out.

    Raises:
        DataError: if the tokenizer has no token that ends a document.
    """
    first, last = _frame(tokenizer)
    for batch in _batches(texts):
        for ids in tokenizer.encode_batch(batch):
            if len(ids):
                yield np.concatenate([first, ids, last])


def encode_record(record: Record, tokenizer: Tokenizer, template: ChatTemplate | None = None) -> Encoded:
    """Encode one record.

    A text counts whole. A conversation counts where the assistant speaks. A completion counts without its
    prompt; with a template the prompt is what the user says, without one the two texts follow each other.

    Raises:
        DataError: if no token would count, or the record's kind cannot be encoded this way.
    """
    match record:
        case TextRecord():
            first, last = _frame(tokenizer)
            ids = np.concatenate([first, tokenizer.encode_batch([record.text])[0], last])
            encoded = Encoded(ids, np.ones(len(ids), np.bool_))
        case ChatRecord():
            encoded = _conversation(record.messages, tokenizer, template, record.where)
        case CompletionRecord():
            encoded = _completion(record.prompt, record.completion, tokenizer, template, record.where)
        case _:
            raise DataError(
                f"{record.where}: {record.kind} records are not text to learn by heart.",
                "Preference records are for reward and dpo, image records for align-image.",
            )
    if not encoded.counted[1:].any():
        raise DataError(
            f"{record.where}: no token of this record counts.",
            "A conversation needs an answer of the assistant; a completion must not be empty.",
        )
    return encoded


def encode_preference(
    record: PreferenceRecord, tokenizer: Tokenizer, template: ChatTemplate | None = None
) -> tuple[Encoded, Encoded]:
    """Encode both sides of a preference as ``(chosen, rejected)``; only the answers count."""
    return (
        _completion(record.prompt, record.chosen, tokenizer, template, record.where),
        _completion(record.prompt, record.rejected, tokenizer, template, record.where),
    )


def encode(
    records: Iterable[Record],
    tokenizer: Tokenizer,
    template: ChatTemplate | None = None,
    *,
    context: int | None = None,
    overlong: Overlong | None = None,
    report: ReadReport | None = None,
) -> TokenStore:
    """Encode records of one kind into memory.

    Args:
        records: as `read_records` gives them.
        tokenizer: turns text into ids.
        template: turns messages into text; needed for conversations.
        context: the longest document that a row can take; None: any.
        overlong: what happens to longer ones: ``split`` into several rows, ``cut`` after ``context`` tokens,
            or ``drop``. None: texts are split, everything else is cut, or dropped if nothing that counts remains.
        report: counts those that were cut or dropped.

    Raises:
        DataError: if nothing is left to train on.
    """
    builder = StoreBuilder(tokenizer.fingerprint, tokenizer.vocab_size)
    left_out: list[str] = []
    cut: list[str] = []
    count = 0
    stream = iter(records)
    for record in stream:
        if isinstance(record, TextRecord):
            count += _add_texts(
                _chain(record, stream), tokenizer, builder, context, overlong or "split", left_out, cut
            )
        else:
            encoded = encode_record(record, tokenizer, template)
            count += _add(record.where, encoded, builder, context, overlong, left_out, cut)
    if left_out:
        _log.warning(
            "%d records were left out: longer than %s tokens (%s …)", len(left_out), context, left_out[0]
        )
    if cut:
        text = "%d records were cut at %s tokens (%s …): how they end is not learned"
        _log.warning(text, len(cut), context, cut[0])
    if report is not None:
        report.overlong += len(left_out)
        report.cut += len(cut)
    if not count:
        more = f" All {len(left_out)} records are longer than {context} tokens." if left_out else ""
        raise DataError(
            f"There is nothing to train on: no record has a token.{more}", "Look at the data's files."
        )
    return builder.build()


# --- parts ---


def _chain(first: Record, rest: Iterator[Record]) -> Iterator[TextRecord]:
    """Yield a run of text records; sources never mix kinds, so the run lasts to the end."""
    record: Record | None = first
    while record is not None:
        if not isinstance(record, TextRecord):
            raise DataError(
                f"{record.where}: a {record.kind} record among text records.", "Use one kind at a time."
            )
        yield record
        record = next(rest, None)


def _add_texts(
    records: Iterator[TextRecord],
    tokenizer: Tokenizer,
    builder: StoreBuilder,
    context: int | None,
    overlong: Overlong,
    left_out: list[str],
    cut: list[str],
) -> int:
    count = 0
    for ids in encode_texts((record.text for record in records), tokenizer):
        if context is not None and len(ids) > context and overlong != "split":
            if overlong == "drop":
                left_out.append("a text")
                continue
            ids = ids[:context]
            cut.append("a text")
        builder.add(ids)
        count += 1
    return count


def _add(
    where: str,
    encoded: Encoded,
    builder: StoreBuilder,
    context: int | None,
    overlong: Overlong | None,
    left_out: list[str],
    cut: list[str],
) -> int:
    ids, counted = encoded.ids, encoded.counted
    if context is not None and len(ids) > context and overlong != "split":
        ids, counted = ids[:context], counted[:context]
        if overlong == "drop" or not counted[1:].any():
            left_out.append(where)
            return 0
        cut.append(where)
    builder.add(ids, counted)
    return 1


def _conversation(
    messages: tuple[Message, ...], tokenizer: Tokenizer, template: ChatTemplate | None, where: str
) -> Encoded:
    if template is None:
        raise DataError(
            f"{where}: messages need a chat template.", "Give the tokenizer's template, or use plain prompts."
        )
    chat = template.encode(messages, tokenizer)
    return Encoded(np.asarray(chat.ids, np.int32), np.asarray(chat.loss_mask, np.bool_))


def _completion(
    prompt: Prompt, completion: str, tokenizer: Tokenizer, template: ChatTemplate | None, where: str
) -> Encoded:
    """Encode prompt and completion apart, so that the prompt has the ids it has when the model is asked."""
    if template is not None:
        messages = (*as_messages(prompt), Message("assistant", completion))
        return _last_turn(_conversation(messages, tokenizer, template, where))
    if not isinstance(prompt, str):
        raise DataError(f"{where}: a prompt of messages needs a chat template.")
    first, last = _frame(tokenizer)
    asked, said = tokenizer.encode_batch([prompt, completion])
    ids = np.concatenate([first, asked, said, last])
    counted = np.arange(len(ids)) >= len(first) + len(asked)
    return Encoded(ids, counted if len(said) else np.zeros(len(ids), np.bool_))


def _last_turn(encoded: Encoded) -> Encoded:
    """Keep only the last run of counted tokens: earlier turns of the assistant belong to the prompt."""
    ends = np.flatnonzero(encoded.counted)
    if not len(ends):
        return encoded
    gaps = np.flatnonzero(np.diff(ends) > 1)
    start = ends[gaps[-1] + 1] if len(gaps) else ends[0]
    return Encoded(encoded.ids, encoded.counted & (np.arange(len(encoded.ids)) >= start))


def _frame(tokenizer: Tokenizer) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Give the tokens that begin (if a prompt begins with one, too) and end a document."""
    if tokenizer.eos_id is None:
        raise DataError(
            "The tokenizer has no token that ends a document (eos).",
            'Train it with special_tokens that include "<|eos|>".',
        )
    bos, around = tokenizer.bos_id, tokenizer.frame
    is_put = tokenizer.adds_bos or (
        around is not None and bos in around[0]
    )  # before a prompt, by Bundle.frame
    first = [bos] if bos is not None and is_put else []
    return np.array(first, np.int32), np.array([tokenizer.eos_id], np.int32)


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= _BATCH_CHARS or len(batch) >= _BATCH_TEXTS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
