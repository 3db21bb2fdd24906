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
    if isinstance(data, str | os.PathLike) and is_shards(data):
        return open_shards(data, tokenizer)
    records = read_records(data, reading, report=report)
    return encode(records, tokenizer, template, context=context, overlong=overlong)


def batches(
    data: Source | Sequence[Source], tokenizer: Tokenizer, *, tokens: int, context: int = 256, seed: int = 0
) -> Loader:
    """Give endless batches of ``tokens`` positions of next-token prediction: the short way to ``fit``."""
    config = LoaderConfig(context=min(context, tokens), batch_tokens=tokens, seed=seed)
    return Loader(open_corpus(data, tokenizer), config)
