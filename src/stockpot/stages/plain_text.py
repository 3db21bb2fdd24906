"""The loss of a model on plain text: what something that was added to it did to what it could do before."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

import torch
from torch import nn

from stockpot.bundle import Bundle
from stockpot.data.batch import IGNORED, Batch
from stockpot.data.sources import read_texts
from stockpot.errors import DataError
from stockpot.stages.assemble import mean_metrics
from stockpot.train.losses import next_token_loss

__all__ = ["plain_batches", "text_loss"]

TEXTS, TOKENS, ROWS = 200, 128, 16


def plain_batches(bundle: Bundle, sources: Sequence[str]) -> list[Batch]:
    """Encode the beginnings of some texts, one a row.

    Raises:
        DataError: if no text has two tokens.
    """
    most = min(TOKENS, bundle.context)
    found = [bundle.encode(text[: 8 * most])[:most] for text in islice(read_texts(sources), TEXTS)]
    rows = [ids for ids in found if len(ids) > 1]
    if not rows:
        raise DataError(f"{', '.join(sources)[:200]} has no text to measure on.", "Name others.")
    batches = []
    for start in range(0, len(rows), ROWS):
        some = rows[start : start + ROWS]
        longest = max(map(len, some)) - 1
        ids = torch.zeros(len(some), longest, dtype=torch.int64)
        labels = torch.full((len(some), longest), IGNORED)
        for at, row in enumerate(some):
            ids[at, : len(row) - 1], labels[at, : len(row) - 1] = (
                torch.tensor(row[:-1]),
                torch.tensor(row[1:]),
            )
        batches.append(Batch(ids, labels, attention_mask=labels != IGNORED))
    return batches


def text_loss(model: nn.Module, texts: Sequence[Batch]) -> float:
    """Give the mean loss a token, in nats."""
    return mean_metrics(texts, next_token_loss)(model)["loss"]
