"""From what a user names to documents that can be drawn from.

One door for a file, a pattern, the village, a data set of the hub or a folder of shards. It only puts the
other files of this room together.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from stockpot.data.encode import Overlong, encode
from stockpot.data.loader import Loader, LoaderConfig
from stockpot.data.reading import ReadConfig, ReadReport
from stockpot.data.shards import is_shards, open_shards
from stockpot.data.sources import Source, read_records
from stockpot.data.store import TokenStore
from stockpot.text.chat import ChatTemplate
from stockpot.text.tokenizer import Tokenizer

__all__ = ["batches", "open_corpus"]


def open_corpus(
    data: Source | Sequence[Source],
    tokenizer: Tokenizer,
    template: ChatTemplate | None = None,
    *,
    reading: ReadConfig | None = None,
    report: ReadReport | None = None,
    context: int | None = None,
    overlong: Overlong | None = None,
) -> TokenStore:
    """Open a folder of shards, or read and encode anything else into memory (2 or 4 bytes a token).

    Args:
        data: what `read_records` reads, or a folder that `write_shards` wrote.
        tokenizer: turns text into ids.
        template: turns conversations into text.
        reading: how files are read.
        report: counts what was read and what was not.
        context: the longest record a row can take; see `encode`.
        overlong: what happens to longer ones; see `encode`.

    Raises:
        DataError: if something is wrong with the data.
    """
    only = data if isinstance(data, str | os.PathLike) else data[0] if len(data) == 1 else None
    if only is not None and is_shards(only):
        return open_shards(only, tokenizer)
    records = read_records(data, reading, report=report)
    return encode(records, tokenizer, template, context=context, overlong=overlong, report=report)


def batches(
    data: Source | Sequence[Source],
    tokenizer: Tokenizer,
    *,
    tokens: int = 4_096,
    context: int = 256,
    seed: int = 0,
) -> Loader:
    """Read a corpus into endless, seeded next-token batches of about ``tokens`` positions: the short way to ``fit``.

    Raises:
        DataError: if the corpus cannot be read or is shorter than one row.
    """
    config = LoaderConfig(context=min(context, tokens), batch_tokens=tokens, seed=seed)
    return Loader(open_corpus(data, tokenizer), config)
