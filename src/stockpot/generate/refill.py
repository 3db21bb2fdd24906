"""Fill gaps with an encoder-decoder: the source holds a sentinel for each gap, the model writes what belongs there.

Decides how gaps become sentinels and how the answer is taken apart. The writing is the engine's, through the function
it gives.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from stockpot.bundle import Bundle
from stockpot.errors import GenerationError
from stockpot.generate.request import Completion, Fill, Sampling

__all__ = ["refill"]

MAX_TOKENS = 64


def refill(bundle: Bundle, text: str, write: Callable[[list[int], Sampling], Completion]) -> list[list[Fill]]:
    """Fill every gap of a text with the model's greedy choice, one filling a gap.

    A filling's probability is that of its tokens together.

    Raises:
        GenerationError: if the text has no gap, more gaps than the tokenizer has sentinels, or is too long.
    """
    tokenizer = bundle.tokenizer
    marks = tokenizer.sentinel_ids
    mark = tokenizer.id_to_token(tokenizer.mask_id) if tokenizer.mask_id is not None else None
    if mark is None or not marks:
        raise GenerationError(
            "This model's tokenizer has no mask token or no sentinels, so it cannot fill gaps.",
            "Use generate.",
        )
    pieces = text.split(mark)
    gaps = len(pieces) - 1
    if gaps < 1:
        raise GenerationError(
            f"The text has no gap; a gap is written {mark}.", f'Example: "The sky is {mark}."'
        )
    if gaps > len(marks):
        raise GenerationError(
            f"The text has {gaps} gaps; this model's tokenizer has {len(marks)} sentinels.",
            "Fill fewer at once.",
        )
    written = write(
        _source(bundle, pieces, marks), Sampling(max_tokens=MAX_TOKENS, temperature=0.0, logprobs=0)
    )
    found = _spans(written, marks)
    fillings = [tokenizer.decode(found.get(one, ([], 0.0))[0], skip_special=True) for one in marks[:gaps]]
    whole = "".join(
        piece.rstrip() + (filling or " ") if number < gaps else piece
        for number, (piece, filling) in enumerate(zip(pieces, [*fillings, ""], strict=True))
    )
    shown = []
    for mark_id, filling in zip(marks[:gaps], fillings, strict=True):
        ids, log_prob = found.get(mark_id, ([], -math.inf))
        shown.append([Fill(filling, ids[0] if ids else mark_id, math.exp(log_prob), whole)])
    return shown


def _source(bundle: Bundle, pieces: Sequence[str], marks: Sequence[int]) -> list[int]:
    """Write the source as span corruption does: text, a sentinel for each gap, the end token."""
    tokenizer = bundle.tokenizer
    ids: list[int] = []
    for number, piece in enumerate(pieces):
        is_last = number == len(pieces) - 1
        spaced = is_last or tokenizer.kind in ("char", "byte")
        ids += tokenizer.encode(
            piece if spaced else piece.rstrip()
        )  # the space belongs to the word in the gap
        if not is_last:
            ids.append(marks[number])
    return [*ids, *([] if tokenizer.eos_id is None else [tokenizer.eos_id])]


def _spans(written: Completion, marks: Sequence[int]) -> dict[int, tuple[list[int], float]]:
    """Take an answer apart: sentinel → the ids after it and their log-probability together."""
    found: dict[int, tuple[list[int], float]] = {}
    current: int | None = None
    for token, log_prob in zip(written.ids, written.log_probs, strict=True):
        if token in marks:
            current = token
            found.setdefault(token, ([], 0.0))
        elif current is not None:
            ids, total = found[current]
            found[current] = ([*ids, token], total + log_prob)
    return found
