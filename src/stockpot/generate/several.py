"""Several tokens for every request in one call of the model, so that what Python does around a call is done once for them.

Only where nothing is asked for but the likeliest ids, and a model can go on by itself. The ids are those of single steps.
Whoever waits for a step to end (someone who leaves, a deadline, a new request) waits for all of its tokens; so there are
fewer of them the longer one takes, and one where a token takes long.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from stockpot.generate.live import Live
from stockpot.generate.rows import Rows
from stockpot.model.native_decoder import GoingOn
from stockpot.model.quantized import QuantizedTransformer
from stockpot.model.transformer import Transformer

__all__ = ["write_several"]

MOST_TOKENS = 16  # a request and step
MOST_SECONDS = 0.03  # after which no further token is begun: some thirty times a second, text comes


def write_several(
    model: Transformer, ids: Tensor, rows: Rows, writing: Sequence[Live], now: float
) -> list[list[int]] | None:
    """Run the next id of each request, ids ``(rows, 1)``, and go on; return the ids of each step.

    The requests own the first rows; the caller tells ``rows`` that they grew. ``now``: seconds on the clock of deadlines.

    Returns:
        None where the tokens have to be written one by one.
    """
    if not isinstance(model, QuantizedTransformer) or not all(live.is_plain for live in writing):
        return None
    steps = min(MOST_TOKENS, *(live.limit - len(live.ids) for live in writing))
    if steps < 2:
        return None
    left = [live.deadline - now for live in writing if live.deadline is not None]
    enders = sorted({id for live in writing for id in live.stop_ids})
    least = [live.sampling.min_tokens - len(live.ids) for live in writing]
    written = model.go_on(
        ids,
        rows.view(0, len(writing)),
        GoingOn(steps, min(MOST_SECONDS, *left) if left else MOST_SECONDS, enders, least),
    )
    return None if written is None else written.tolist()
